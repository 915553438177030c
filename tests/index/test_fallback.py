import json
import logging
from itertools import pairwise

import pytest

from index.approximate.fallback import CLIMB, Climb, end_climb, fell_short, ladder, read_climb, read_scan, record_scan
from index.approximate.operating_points import Dial, Measured
from index.errors import IndexCorrupt, VectorIndexError
from index.persist import RECORD, read_record
from index.settings import IndexSettings

AUTO = IndexSettings(kind="auto", memory=None)


def short(recall=0.8):
    ends = ("largest", "smallest")
    dials = tuple(
        Dial(end=end, depth=10, probes=4, candidates=1000, recall=recall + 0.1 * (end == "largest")) for end in ends
    )
    return Measured(target=0.95, reached=False, queries=200, spread=1.0, dials=dials, curve=())


@pytest.fixture
def climb():
    return Climb(kind="climb", fingerprint="f", target=0.95, plans=ladder(AUTO, 10**6, 1024), tried=())


@pytest.mark.parametrize(("rows", "dims"), [(10**6, 1024), (10**6, 21_504), (10**8, 86_016)])
def test_auto_climbs_to_more_bytes_and_at_last_to_a_scan_of_the_rows(rows, dims):
    plans = ladder(AUTO, rows, dims)
    first = plans[0].row_bytes
    assert [round(plan.row_bytes / first) for plan in plans[:-1]] == [1, 2, 4]
    assert plans[-1].kind == "exact"
    assert plans[-1].factory is None


@pytest.mark.parametrize("kind", ["ivf_rabitq2", "sq8", "flat", "exact", "ivf_pq"])
def test_a_kind_that_the_user_named_is_never_replaced(kind):
    assert [plan.kind for plan in ladder(IndexSettings(kind=kind), 10**4, 256)] == [kind]


def test_auto_compares_every_row_where_that_fits_and_has_nothing_to_climb():
    assert [plan.kind for plan in ladder(AUTO, 3767, 21_504)] == ["flat"]


@pytest.mark.parametrize("memory", [2 * 10**8, 4 * 10**8, 8 * 10**8])
@pytest.mark.parametrize("dims", [1024, 21_504])
def test_no_step_takes_more_than_the_memory_that_was_given(memory, dims):
    plans = ladder(IndexSettings(kind="auto", memory=memory), 10**6, dims)
    assert all(plan.disk_bytes <= memory for plan in plans)
    sizes = [plan.row_bytes for plan in plans[:-1]]
    assert all(later >= 1.25 * before for before, later in pairwise(sizes))


def test_what_fell_short_is_remembered_where_it_was_worst_and_said(tmp_path, climb, caplog):
    with caplog.at_level(logging.INFO):
        fell_short(tmp_path, climb, 0, short())
    found = read_climb(tmp_path, "f", climb.plans, 0.95)
    assert found.next == 1
    assert (found.tried[0].end, found.tried[0].recall, found.tried[0].row_bytes) == (
        "smallest",
        0.8,
        climb.plans[0].row_bytes,
    )
    assert "finds 0.800 of the 10 smallest scores" in caplog.text
    assert climb.plans[1].summary in caplog.text


def test_a_step_that_is_measured_again_after_a_kill_is_kept_once(tmp_path, climb):
    once = fell_short(tmp_path, climb, 0, short())
    again = fell_short(tmp_path, once, 0, short())
    assert once == again


@pytest.mark.parametrize("other", [{"fingerprint": "g"}, {"target": 0.9}, {"plans": ()}])
def test_what_was_tried_for_other_rows_another_recall_or_other_plans_counts_as_nothing(tmp_path, climb, other):
    fell_short(tmp_path, climb, 0, short())
    asked = {"fingerprint": "f", "plans": climb.plans, "target": 0.95, **other}
    assert read_climb(tmp_path, **asked).tried == ()


def test_a_damaged_account_of_what_was_tried_starts_from_the_first_step(tmp_path, climb):
    fell_short(tmp_path, climb, 0, short())
    (tmp_path / CLIMB).write_text("{")
    assert read_climb(tmp_path, "f", climb.plans, 0.95).next == 0


def test_a_scan_is_recorded_and_warned_of_with_the_best_that_was_tried(tmp_path, climb, caplog):
    for step, recall in enumerate((0.6, 0.8, 0.7)):
        climb = fell_short(tmp_path, climb, step, short(recall))
    with caplog.at_level(logging.WARNING):
        record_scan(tmp_path, climb)
    end_climb(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
    assert climb.plans[1].summary in caplog.text
    assert "0.800" in caplog.text
    found = read_scan(tmp_path)
    assert found is not None
    assert [one.recall for one in found.tried] == [0.6, 0.8, 0.7]


def test_the_record_of_a_scan_is_no_flat_index_and_a_flat_one_no_scan(tmp_path, climb):
    record_scan(tmp_path, fell_short(tmp_path, climb, 0, short()))
    with pytest.raises(VectorIndexError):
        read_record(tmp_path)
    fields = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps({**fields, "kind": "flat"}))
    assert read_scan(tmp_path) is None
    (tmp_path / RECORD).write_text(json.dumps({**fields, "target": "much"}))
    with pytest.raises(IndexCorrupt, match="target"):
        read_scan(tmp_path)


def test_nothing_is_scanned_where_nothing_is_on_record(tmp_path):
    assert read_scan(tmp_path) is None
