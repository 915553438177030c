"""A row that ends its worker's process is set aside by name, as one that raises an error is."""

import json
import logging
import re
import textwrap
from pathlib import Path

import dask
import pytest

from influence.capture import session
from influence.engine import cluster
from influence.engine import poison as deadly_rows
from influence.engine.poison import Lost, died_of
from influence.engine.stage import RowStage, Task
from influence.errors import ClusterError, Incomplete
from influence.stages import build as build_module
from influence.stages.build import build_run
from influence.store.manifest import MANIFEST, Manifest
from influence.store.reader import Store
from tests.forkserver import PROCESSES

GOOD = ("The river was named.", "A list keeps its items.", "Sort the list in place.", "In winter it freezes.")
# A word of doom for the tokeniser, a token of doom for the model; `deaths` counts what died of either.
PRELOAD = textwrap.dedent("""
    import os
    from pathlib import Path
    from influence.capture import session

    def die():
        with Path({deaths!r}).open("a") as deaths:
            deaths.write("x")
        os._exit(1)

    def dask_setup(worker):
        tokenise, load = session.Session.tokenise, session.load_model

        def fragile_tokenise(self, examples, *, whole=False):
            if any("unreadable" in example.text for example in examples):
                die()
            return tokenise(self, examples, whole=whole)

        def load_fragile(*args):
            model = load(*args)
            model.get_input_embeddings().register_forward_pre_hook(
                lambda _, given: die() if (given[0] == {token}).any() else None
            )
            return model

        session.Session.tokenise, session.load_model = fragile_tokenise, load_fragile
""")


@pytest.fixture
def settings(configured, written):
    """`settings(texts, *overrides)`: a small run of these texts, eight rows a shard."""

    def make(texts, *overrides):
        data = written(*({"text": text, "id": f"text-{n}"} for n, text in enumerate(texts)))
        return configured("index.kind=exact", "store.rows_per_shard=8", *overrides, data=data)

    return make


@pytest.fixture
def build_fragile(tokenizer, tmp_path, monkeypatch):
    """`build_fragile(config, run_dir)`: build with workers that really die of some texts; returns how many did."""
    deaths, preload = tmp_path / "deaths", tmp_path / "preload.py"
    preload.write_text(PRELOAD.format(deaths=str(deaths), token=tokenizer.encode("~")[-1]))
    # Workers come up in a moment, forked off a process that has imported everything.
    PROCESSES.Process(target=len, args=("",)).start()
    forked = {"distributed.worker.multiprocessing-method": "forkserver", "distributed.worker.preload": [str(preload)]}

    def build(config, run_dir, allowed=1):
        deaths.write_text("")
        with monkeypatch.context() as patch, dask.config.set(forked):
            patch.setitem(cluster.QUIET, "distributed.scheduler.allowed-failures", allowed)
            patch.setattr(build_module, "connect", cluster.connect)
            with pytest.raises(Incomplete) as ended:
                build_run(config, run_dir)
        return str(ended.value), deaths.stat().st_size

    return build


@pytest.fixture
def build_raising(tokenizer, in_process, monkeypatch):
    """`build_raising(config, run_dir)`: build with a model that raises an error where a fragile worker's would die."""
    load, doom = session.load_model, tokenizer.encode("~")[-1]

    def refuse(_, given):
        if (given[0] == doom).any():
            raise ValueError("doomed")

    def load_raising(*args):
        model = load(*args)
        model.get_input_embeddings().register_forward_pre_hook(refuse)
        return model

    def build(config, run_dir):
        monkeypatch.setattr(session, "load_model", load_raising)
        with pytest.raises(Incomplete, match="doomed"):
            build_run(config, run_dir)

    return build


def without_errors(contents, run_dir: Path):
    """Digests of a run's files; of its records everything but what the errors of quarantined rows say."""
    found = contents(run_dir)
    for path in (run_dir / MANIFEST, *sorted((run_dir / "rows").glob("*.json"))):
        record = json.loads(path.read_bytes())
        named = [[row["row"], row["id"]] for row in record["quarantined"]]
        found[str(path.relative_to(run_dir))] = {**record, "quarantined": named, "sha256": None}
    return found


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_set_aside_as_if_it_had_raised_an_error(
    settings, build_fragile, build_raising, tmp_path, contents, caplog
):
    caplog.set_level(logging.WARNING, "influence")
    # Row 20 is none of those that the probe looks at, and one of the sample that factors are fitted to.
    texts = [GOOD[row % 4] if row != 20 else "A text with a ~ in it." for row in range(24)]
    config = settings(texts, "recipe.projection.rows=whitened", "recipe.factors.rows=24")
    said, deaths = build_fragile(config, tmp_path / "run")
    assert f"row 20 (text-20): {died_of('computing')}" in said
    # Given up once, tried whole twice, halved, tried alone twice; and never touched again by the stages that followed.
    assert deaths <= 4 + 5 + 1
    assert sum(message.startswith("A worker was lost while computing") for message in caplog.messages) == deaths - 2
    build_raising(config, tmp_path / "raised")
    assert without_errors(contents, tmp_path / "run") == without_errors(contents, tmp_path / "raised")


@pytest.mark.slow
def test_a_row_that_kills_its_worker_in_the_tokeniser_is_never_tokenised_again(settings, build_fragile, tmp_path):
    texts = [GOOD[row % 4] if row != 20 else "An unreadable text." for row in range(24)]
    said, deaths = build_fragile(settings(texts), tmp_path / "run", allowed=0)
    assert f"row 20 (text-20): {died_of('tokenising')}" in said
    assert deaths == 3 + 3 + 1
    assert [row.row for row in Manifest.load(tmp_path / "run").quarantined] == [20]
    store = Store(tmp_path / "run")
    (meta,) = store.meta([20])
    assert (meta["text"], meta["tokens"]) == ("An unreadable text.", 0)


@pytest.fixture
def hunted(monkeypatch):
    """`hunted(kills, most)`: search sixteen rows and tell the tries lost; `kills(positions)` says which are."""

    def hunt(kills, most):
        lost, task = [], Task(RowStage(), 0, "the task", rows=range(100, 116))

        def made(client, tried, progress):
            if kills(tried.positions):
                lost.append(tried.positions)
                return Lost("computing")
            return (tried.positions, dict(tried.dead))

        monkeypatch.setattr(deadly_rows, "_try", made)
        monkeypatch.setattr(deadly_rows, "_found", {None: {}})
        try:
            return deadly_rows._without_deadly_rows(None, task, most, None), lost
        except ClusterError as error:
            return str(error), lost

    return hunt


@pytest.mark.parametrize("deadly", [set(), {0}, {7}, {3, 4}, {0, 5, 9, 15}])
def test_deadly_rows_are_found_at_the_cost_of_a_logarithm_of_workers_each(hunted, deadly):
    (positions, dead), lost = hunted(lambda positions: deadly & set(positions), most=4)
    assert set(dead) == deadly
    assert set(positions) | deadly == set(range(16))
    assert len(lost) <= 2 + len(deadly) * (4 + 1)


@pytest.mark.parametrize(
    ("kills", "most", "why", "workers"),
    [
        (lambda positions: True, 100, "none was seen to come through", 2 + 4 + 5 * 2 + 3),
        (lambda positions: {1, 6, 8} & set(positions), 2, r"3 of its rows.*leaves room for \(2\)", 20),
        (lambda positions: len(positions) > 6, 100, "No row of it does so alone", 3 * 5),
    ],
)
def test_where_no_few_rows_are_to_blame_the_build_ends_and_says_so(hunted, kills, most, why, workers):
    said, lost = hunted(kills, most)
    assert re.search("The workers that took up the task died.*" + why, said)
    assert len(lost) <= workers


def test_a_worker_lost_by_chance_costs_another_try_and_no_row(hunted):
    deaths = iter([True, True, False, True])
    (_, dead), lost = hunted(lambda positions: next(deaths, False), most=4)
    assert dead == {}
    assert len(lost) == 3
