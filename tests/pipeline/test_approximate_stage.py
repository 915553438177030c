"""An approximate index is made by tasks, resumes like the rest of a build, and proposes what an exact search finds."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from index.errors import IndexCorrupt, VectorIndexError
from influence.api import open as open_run
from influence.errors import Incomplete, StoreError
from influence.stages import approximate as approximate_stage
from influence.stages import index as index_stage
from influence.stages import index_parts
from influence.stages.build import build_run
from influence.stages.index import FOLDER

WHO = ("The keeper", "A list", "The river", "The old clock", "A mapping", "The ferry", "In winter the harbour")
DOES = ("keeps", "freezes", "returns", "names", "strikes", "sorts", "waits for")
WHAT = ("its items", "the number of bytes", "a cartographer", "the ice", "each key", "thirteen", "the end of the file")
ASKED = [
    {"prompt": "The keeper", "completion": " names a cartographer"},
    {"prompt": "", "completion": "In winter the harbour freezes the ice"},
    {"prompt": "A list sorts", "completion": " each key"},
]
DECIDED = ("recipe.name=whitened", "recipe.exact.kind=ekfac", "recipe.exact.candidates=10", "recipe.factors.rows=12")
SMALL = ("recipe.name=graddot", "recipe.projection.p=6", "recipe.projection.q=6", "store.rows_per_shard=64")


@pytest.fixture
def indexed(configured, written, monkeypatch):
    """`indexed("index.kind=ivf_sq8", …)`: a run of 343 rows, its index in parts of 100."""
    plan, plans = index_stage.index_plan, index_stage.index_plans

    def cut(found):
        return found if found.factory is None else replace(found, part_rows=100)

    monkeypatch.setattr("influence.stages.index.index_plan", lambda *asked: cut(plan(*asked)))
    for module in ("approximate", "index"):
        monkeypatch.setattr(f"influence.stages.{module}.index_plans", lambda *asked: tuple(map(cut, plans(*asked))))
    data = written(
        *({"text": f"{' '.join(words)}.", "id": f"row-{n}"} for n, words in enumerate(product(WHO, DOES, WHAT)))
    )
    return lambda *changes: configured(*SMALL, *changes, data=data)


def searches(run_dir, k=10, **asked):
    with open_run(run_dir, device="cpu") as run:
        return {hits.search for hits in run.query_many(ASKED, k=k, **asked)}


def answers(run_dir, k=10, **asked):
    with open_run(run_dir, device="cpu") as run:
        return [
            [(hit.row, hit.score) for hit in (*hits.promoting, *hits.opposing)]
            for hits in run.query_many(ASKED, k=k, **asked)
        ]


@pytest.mark.parametrize("kind", ["ivf_flat", "sq8", "ivf_rabitq2", "ivf_pq"])
def test_codes_propose_and_the_stored_rows_decide(indexed, in_process, tmp_path, kind):
    run_dir = tmp_path / "run"
    build_run(indexed(f"index.kind={kind}", "store.codec=float16"), run_dir)
    record = json.loads((run_dir / FOLDER / "index.json").read_text())
    assert record["measured"]["reached"]
    assert record["measured"]["curve"]
    found = answers(run_dir)
    build_run(indexed("index.kind=exact", "store.codec=float16"), run_dir)
    expected = answers(run_dir)
    shared = [len(set(some) & set(all_)) / len(all_) for some, all_ in zip(found, expected, strict=True)]
    assert np.mean(shared) >= 0.9
    assert not list((run_dir / FOLDER).glob("part-*"))


@pytest.mark.parametrize("decided", [(), DECIDED])
def test_an_answer_says_whether_an_index_proposed_its_rows_and_with_the_recall_that_was_measured(
    indexed, in_process, tmp_path, decided
):
    # Every candidate is an answer: they come as late as early.
    build_run(indexed(*decided, "index.kind=ivf_sq8", "index.candidates=10"), tmp_path / "run")
    assert searches(tmp_path / "run") == {"below_recall"}
    assert searches(tmp_path / "run", where="row >= 0") == {"exact"}
    build_run(indexed(*decided, "index.kind=exact"), tmp_path / "run")
    assert searches(tmp_path / "run") == {"exact"}


def test_only_parts_that_are_missing_are_filled_again_and_the_bytes_are_the_same(
    indexed, in_process, tmp_path, monkeypatch, contents
):
    config = indexed("index.kind=ivf_rabitq", "recipe.name=logra", "recipe.comparison=cosine")
    build_run(config, tmp_path / "whole")
    filled, fill, stops = [], index_parts.build_part, [2]

    def interrupted(folder, fingerprint, number, blocks):
        filled.append(number)
        if number in stops:
            stops.clear()
            raise Incomplete("stopped")
        return fill(folder, fingerprint, number, blocks)

    monkeypatch.setattr(index_parts, "build_part", interrupted)
    with pytest.raises(Incomplete, match="stopped"):
        build_run(config, tmp_path / "run")
    standing = {int(path.stem[-5:]) for path in (tmp_path / "run" / FOLDER).glob("part-*.json")}
    filled.clear()
    build_run(config, tmp_path / "run")
    assert standing.isdisjoint(filled)
    assert 2 in filled
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_another_recall_is_measured_anew_and_another_kind_built_anew_over_the_same_rows(
    indexed, in_process, tmp_path, monkeypatch
):
    run_dir = tmp_path / "run"
    build_run(indexed("index.kind=ivf_sq8"), run_dir)
    lists = (run_dir / FOLDER / "lists.ivfdata").stat().st_mtime_ns
    monkeypatch.setattr(index_parts, "train", None)
    build_run(indexed("index.kind=ivf_sq8", "index.recall=0.5"), run_dir)
    record = json.loads((run_dir / FOLDER / "index.json").read_text())
    assert record["measured"]["target"] == 0.5
    assert (run_dir / FOLDER / "lists.ivfdata").stat().st_mtime_ns == lists
    build_run(indexed("index.kind=flat"), run_dir)
    assert sorted(path.name for path in (run_dir / FOLDER).iterdir()) == ["index.faiss", "index.json"]
    monkeypatch.undo()


def test_a_flat_index_gives_way_to_an_approximate_one(indexed, in_process, tmp_path):
    build_run(indexed("index.kind=flat"), tmp_path / "run")
    build_run(indexed("index.kind=auto", "index.memory=40000"), tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / FOLDER).iterdir())
    assert names == ["index.json", "lists.ivfdata", "trained.faiss", "trained.json"]


def test_auto_builds_a_flat_index_where_one_fits_and_answers_as_a_scan_does(indexed, in_process, tmp_path):
    build_run(indexed("index.kind=auto"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / FOLDER / "index.json").read_text())["kind"] == "flat"
    found = answers(tmp_path / "run")
    build_run(indexed("index.kind=exact"), tmp_path / "run")
    assert found == answers(tmp_path / "run")


def test_conditions_are_exact_whatever_the_index(indexed, in_process, tmp_path):
    build_run(indexed("index.kind=ivf_rabitq"), tmp_path / "run")
    found = answers(tmp_path / "run", where="id like 'row-1%' and tokens > 3")
    build_run(indexed("index.kind=exact"), tmp_path / "run")
    assert found == answers(tmp_path / "run", where="id like 'row-1%' and tokens > 3")
    assert all(row // 100 == 1 or row // 10 == 1 or row == 1 for hits in found for row, _ in hits)


def test_a_flipped_byte_of_the_lists_is_refused(indexed, in_process, tmp_path):
    build_run(indexed("index.kind=ivf_sq8"), tmp_path / "run")
    lists = tmp_path / "run" / FOLDER / "lists.ivfdata"
    content = bytearray(lists.read_bytes())
    content[len(content) // 2] ^= 1
    lists.write_bytes(content)
    with pytest.raises(StoreError, match=r"lists\.ivfdata: found sha256") as caught:
        answers(tmp_path / "run")
    assert isinstance(caught.value.__cause__, IndexCorrupt)


def test_an_index_that_cannot_be_carried_out_is_refused_before_any_row_is_captured(indexed, in_process, tmp_path):
    with pytest.raises(VectorIndexError, match=r"index\.memory"):
        build_run(indexed("index.kind=ivf_rabitq", "index.memory=100"), tmp_path / "run")
    assert not list((tmp_path / "run").glob("rows/*"))


@pytest.fixture
def short(monkeypatch):
    """`short(2)`: the first two steps are measured as finding too little."""
    measure, seen = approximate_stage.measure_recall, []

    def install(steps):
        def measured(opened, *asked, **named):
            found = measure(opened, *asked, **named)
            seen.append(opened.trained.plan.row_bytes)
            if len(set(seen)) > steps:
                return found
            return found.model_copy(update={"reached": False})

        monkeypatch.setattr(approximate_stage, "measure_recall", measured)
        return seen

    return install


@pytest.fixture
def unlimited(monkeypatch):
    """No step of `auto` is a flat index, however few the rows."""
    monkeypatch.setattr("index.factory.FLAT_BYTES", 1)


def test_auto_climbs_where_it_finds_too_little_and_the_record_says_so(indexed, in_process, tmp_path, short, unlimited):
    seen, run_dir, steps = short(1), tmp_path / "run", []
    config = indexed("index.kind=auto", "store.codec=float16")
    build_run(config, run_dir, lambda step: steps.append((step.stage, step.done, step.total)))
    record = json.loads((run_dir / FOLDER / "index.json").read_text())
    assert seen == sorted(set(seen))
    assert len(seen) == 2
    assert record["plan"]["row_bytes"] == seen[1]
    assert [(one["step"], one["row_bytes"]) for one in record["tried"]] == [(0, seen[0])]
    assert not (run_dir / FOLDER / "climb.json").exists()
    assert [step for step in steps if step[0] == "index"][-1][1:] == (16, 16)
    build_run(config, run_dir)
    assert len(seen) == 2


def test_where_no_step_finds_enough_auto_scans_the_rows_and_answers_exactly(
    indexed, in_process, tmp_path, short, unlimited, caplog
):
    short(9)
    run_dir = tmp_path / "run"
    build_run(indexed("index.kind=auto", "store.codec=float16"), run_dir)
    assert [path.name for path in (run_dir / FOLDER).iterdir()] == ["index.json"]
    assert "Searches scan the stored rows" in caplog.text
    found = answers(run_dir)
    build_run(indexed("index.kind=exact", "store.codec=float16"), run_dir)
    assert found == answers(run_dir)


def test_a_climb_that_was_interrupted_goes_on_where_it_was_with_the_same_bytes(
    indexed, in_process, tmp_path, monkeypatch, short, unlimited, contents
):
    seen, config = short(1), indexed("index.kind=auto")
    build_run(config, tmp_path / "whole")
    seen.clear()
    fill, filled = index_parts.build_part, []

    def interrupted(folder, fingerprint, number, blocks):
        filled.append(number)
        if len(filled) == 7:
            raise Incomplete("stopped")
        return fill(folder, fingerprint, number, blocks)

    monkeypatch.setattr(index_parts, "build_part", interrupted)
    with pytest.raises(Incomplete, match="stopped"):
        build_run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / FOLDER / "climb.json").read_text())["tried"][0]["step"] == 0
    build_run(config, tmp_path / "run")
    # Four parts a step: the first step isn't built again.
    assert len(filled) <= 9
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_kind_that_was_named_stays_and_is_warned_of(indexed, in_process, tmp_path, short, caplog):
    seen = short(9)
    build_run(indexed("index.kind=ivf_sq8"), tmp_path / "run")
    record = json.loads((tmp_path / "run" / FOLDER / "index.json").read_text())
    assert (record["plan"]["kind"], record["measured"]["reached"], record["tried"]) == ("ivf_sq8", False, [])
    build_run(indexed("index.kind=ivf_sq8"), tmp_path / "run")
    assert len(seen) == 1
