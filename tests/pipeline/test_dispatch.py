"""Few tasks are done in the calling process: to the same bytes, nothing left open, and never in a queue's place."""

import pytest
from distributed import Client

import influence.api as runs
from influence.capture import process_session
from influence.capture.session import Session
from influence.data.queries import as_example
from influence.engine import dispatch
from influence.engine.cluster import kept_cluster
from influence.engine.stage import Task
from influence.errors import Incomplete
from influence.scan import answer as scan_module
from influence.scan import blocks as score_stage
from influence.scan.blocks import ScoreBlocks
from influence.stages.build import build_run
from tests.forkserver import workers_forked

QUERIES = [
    {"prompt": "The river was named after", "completion": " a cartographer who never saw it.", "id": "river"},
    {"prompt": "", "completion": "In winter the harbour freezes", "id": "winter"},
    {"text": "A list keeps its items", "id": "list"},
    {"prompt": "The harbour", "completion": " was named", "id": "named"},
]
METHODS = {
    "straight from the codes": (),
    "decoded, with curvature on both sides": ("recipe.name=trackstar",),
    "weighted": ("recipe.measurement=log_odds", "recipe.curvature.side=both"),
}


@pytest.fixture
def stored(configured, in_process, tmp_path):
    """`stored(*overrides)`: a run of the forty rows."""

    def make(*overrides):
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        build_run(configured(*overrides), folder)
        return runs.open(folder)

    return make


@pytest.fixture(autouse=True)
def cut_small(monkeypatch):
    """Cut scans into blocks of 7 rows and batches of 2 queries."""
    monkeypatch.setattr(scan_module, "rows_of_block", lambda *_: 7)
    monkeypatch.setattr(scan_module, "batch_of", lambda *_: 2)


@pytest.fixture
def none_started(monkeypatch):
    """A cluster that is connected to is an error."""

    def connect(*_):
        raise AssertionError("a cluster is started")

    monkeypatch.setattr(dispatch, "connect", connect)


@pytest.fixture
def sessions(monkeypatch):
    """The sessions that tasks have opened."""
    opened = []

    class Noted(Session):
        def __init__(self, spec):
            super().__init__(spec)
            opened.append(self)

    monkeypatch.setattr(process_session, "Session", Noted)
    return opened


@pytest.mark.slow
def test_what_is_computed_here_has_the_bytes_that_a_worker_process_writes(stored, tmp_path, monkeypatch):
    made = [stored(*overrides) for overrides in METHODS.values()]
    handed, run_tasks = [], dispatch.run_tasks

    def handing(client, function, tasks, *about):
        handed.append((client, tasks[0].stage))
        return run_tasks(client, function, tasks, *about)

    def write(folder):
        folder.mkdir()
        for number, run in enumerate(made):
            run.score_to(QUERIES, folder / f"{number}.parquet", where="row <> 8")
        made[0].self_influence_to(folder / "self.parquet")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    monkeypatch.setattr(dispatch, "run_tasks", handing)
    ours = write(tmp_path / "here")
    assert handed == []
    monkeypatch.setattr(dispatch, "WORTH", 0)
    with workers_forked(), kept_cluster():
        assert write(tmp_path / "there") == ours
    assert sum(isinstance(stage, ScoreBlocks) for _, stage in handed) == len(made) + 1
    assert all(isinstance(client, Client) for client, _ in handed)


def test_a_session_that_is_opened_here_is_closed_also_by_ctrl_c_and_the_same_scan_goes_on(
    stored, none_started, sessions, tmp_path, monkeypatch
):
    run, saved = stored(), []
    sessions.clear()
    whole = run.score_to(QUERIES, tmp_path / "whole.parquet").out
    save = Task.save

    def interrupted(*given):
        if saved:
            raise KeyboardInterrupt
        saved.append(given)
        save(*given)

    monkeypatch.setattr(Task, "save", interrupted)
    out = tmp_path / "s.parquet"
    with pytest.raises(Incomplete, match=r"Interrupted. Partial results are in .*s\.parquet\.parts"):
        run.score_to(QUERIES, out)
    monkeypatch.setattr(Task, "save", save)
    steps = []
    run.score_to(QUERIES, out, progress=steps.append)
    assert next(step.done for step in steps if step.stage == "queries") == 1
    assert out.read_bytes() == whole.read_bytes()
    assert [session._hooks for session in sessions] == [None, None, None]


@pytest.mark.parametrize("change", ["cluster.kind=slurm", "cluster.kind=cuda", "worth workers"])
def test_a_cluster_that_was_named_and_work_that_is_worth_workers_are_not_done_here(
    stored, none_started, tmp_path, monkeypatch, change
):
    run = stored()
    if change == "worth workers":
        monkeypatch.setattr(score_stage, "query_seconds", lambda *_, **__: dispatch.WORTH)
    overrides = () if change == "worth workers" else ("cluster.device=auto", change)
    with pytest.raises(AssertionError, match="a cluster is started"):
        run.score_to(QUERIES, tmp_path / "s.parquet", overrides=overrides)


def test_queries_that_take_longer_are_reckoned_to_take_longer(stored):
    run = stored()
    spec = run.session.spec

    def seconds(*texts, cut=False):
        return score_stage.query_seconds(spec, [as_example({"text": text}) for text in texts], cut=cut)

    assert seconds() == 0
    assert 0 < seconds("a river") < seconds("a river " * 200) < seconds("a river " * 200, "a river")
    assert seconds("a river " * 2000, cut=True) == seconds("a river " * 4000, cut=True) < seconds("a river " * 2000)
