import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.approximate.merge import merge_parts, open_index, open_parts, read_approximate, record_measured
from index.approximate.parts import build_part, load_trained, part_ranges, read_part
from index.approximate.questions import questions
from index.approximate.recall import measure_recall
from index.approximate.search import search
from index.errors import IndexCorrupt, IndexMismatch, IndexNotWritten, VectorIndexError
from index.exact import exact_search
from index.persist import read_record
from index.rerank import scored_by
from tests.index.gradient_rows import blocks_of, built_parts, gradients, merged, planned

faiss = pytest.importorskip("faiss")
ROWS = gradients(600, 24)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def standing(tmp_path):
    merged(tmp_path / "x", ROWS, 250, kind="ivf_rabitq2")
    return tmp_path / "x"


BUILD = """
import sys
from pathlib import Path
from index.approximate.merge import merge_parts
from index.approximate.parts import build_part, part_ranges
from tests.index.gradient_rows import blocks_of, gradients, planned
rows = gradients(5000, 96)
for kind in ("ivf_rabitq2", "ivf_sq8"):
    folder = Path(sys.argv[1]) / kind
    for number, (first, stop) in enumerate(part_ranges(planned(rows, 4500, kind=kind, memory=500_000), 5000)):
        build_part(folder, "f", number, blocks_of(rows, first, stop, int(sys.argv[2])))
    merge_parts(folder, "f")
"""


def test_blocks_of_any_size_and_any_number_of_threads_give_the_same_bytes(tmp_path):
    rows = gradients(5000, 96)
    for kind in ("ivf_rabitq2", "ivf_sq8"):
        built_parts(tmp_path / "a" / kind, rows, planned(rows, 4500, kind=kind, memory=500_000), numbers=())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name, size, threads, core in (("a", 64, "2", "Haswell"), ("b", 7000, "1", "Nehalem")):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        environment["OPENBLAS_CORETYPE"] = core
        command = [sys.executable, "-c", BUILD, str(tmp_path / name), str(size)]
        subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[2])
    for kind in ("ivf_rabitq2", "ivf_sq8"):
        assert contents(tmp_path / "a" / kind) == contents(tmp_path / "b" / kind)


def test_parts_may_be_built_in_any_order(tmp_path):
    plan = planned(ROWS, 250, kind="ivf_rabitq")
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        built_parts(tmp_path / name, ROWS, plan, numbers=())
        ranges = part_ranges(plan, 600)
        for number in order:
            build_part(tmp_path / name, "f", number, blocks_of(ROWS, *ranges[number]))
        merge_parts(tmp_path / name, "f")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_parts_cover_every_row_once():
    plan = replace(planned(ROWS, kind="sq8"), part_rows=250)
    assert part_ranges(plan, 600) == [(0, 250), (250, 500), (500, 600)]
    assert part_ranges(plan, 0) == []


def test_a_part_that_stands_is_not_built_again(tmp_path):
    built_parts(tmp_path, ROWS, planned(ROWS, 250, kind="sq8"))
    before = contents(tmp_path)

    def unread():
        raise AssertionError("the rows were read")
        yield

    build_part(tmp_path, "f", 1, unread())
    assert contents(tmp_path) == before


def test_a_part_of_another_training_or_cut_short_counts_as_none(tmp_path):
    plan = planned(ROWS, 250, kind="sq8")
    built_parts(tmp_path, ROWS, plan)
    record = load_trained(tmp_path, "f")[1]
    path = tmp_path / "part-00001.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    assert read_part(tmp_path, 1, record) is None
    built_parts(tmp_path, ROWS * 2, plan, numbers=())
    assert read_part(tmp_path, 0, load_trained(tmp_path, "f")[1]) is None


def test_what_a_killed_process_left_behind_is_cleared_and_stands_in_nobodys_way(tmp_path):
    built_parts(tmp_path, ROWS, planned(ROWS, 250, kind="sq8"))
    (tmp_path / "part-00000.faiss.123.partial").write_bytes(b"half")
    merge_parts(tmp_path, "f")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json",
        "lists.ivfdata",
        "trained.faiss",
        "trained.json",
    ]


def test_merging_an_index_that_stands_leaves_it(standing):
    before = contents(standing)
    merge_parts(standing, "f")
    assert contents(standing) == before


def test_nothing_is_printed_while_an_index_is_built_merged_and_opened(tmp_path, capfd):
    merged(tmp_path, ROWS, 250, kind="ivf_sq8")
    assert capfd.readouterr() == ("", "")


def test_merged_lists_hold_every_row_once_in_the_order_of_the_parts(standing):
    index = open_index(standing, "f")
    lists = index.trained.lists.invlists
    numbers = [
        faiss.rev_swig_ptr(lists.get_ids(cell), lists.list_size(cell)).tolist()
        for cell in range(index.trained.plan.cells)
        if lists.list_size(cell)
    ]
    assert all(rows == sorted(rows) for rows in numbers)
    assert sorted(row for rows in numbers for row in rows) == list(range(600))


def test_thousands_of_lists_are_mapped_at_their_own_sizes(tmp_path):
    rows = gradients(6000, 8)
    index = merged(tmp_path, rows, 2500, kind="factory", factory="IVF5000,SQ8")
    record = read_approximate(tmp_path)
    assert record is not None
    assert [index.trained.lists.invlists.list_size(cell) for cell in range(5000)] == list(record.sizes)
    found = search(index, rows[:40], 3, scored_by(lambda which: rows[which]), probes=5000, candidates=500)
    np.testing.assert_array_equal(found.largest.scores, exact_search(rows[:40], blocks_of(rows), 3).largest.scores)


def test_a_record_that_disagrees_with_its_lists_is_refused(standing):
    record = json.loads((standing / "index.json").read_text())
    record["sizes"][0] += 1
    (standing / "index.json").write_text(json.dumps(record))
    with pytest.raises(IndexCorrupt, match="found 601 rows"):
        open_index(standing, "f")


def test_row_numbers_that_cannot_be_are_refused_where_bytes_were_not_verified(standing):
    lists, index = standing / "lists.ivfdata", open_index(standing, "f")
    held, size = index.trained.lists.invlists.list_size(0), index.trained.lists.code_size
    content = bytearray(lists.read_bytes())
    content[held * size : held * (size + 8)] = np.full(held, 7000, np.int64).tobytes()
    lists.write_bytes(content)
    index = open_index(standing, "f", "size")
    with pytest.raises(IndexCorrupt, match="name row 7000, and there are 600 rows: the files were altered"):
        search(index, ROWS[:1], 3, scored_by(lambda rows: ROWS[rows]), probes=99, candidates=50)


def test_merging_without_all_parts_names_those_that_are_missing(tmp_path):
    built_parts(tmp_path, ROWS, planned(ROWS, 250, kind="sq8"), numbers=(1,))
    with pytest.raises(IndexMismatch, match=r"2 of 3 parts are missing.*part-00000, part-00002\. Run the same build"):
        merge_parts(tmp_path, "f")
    assert read_approximate(tmp_path) is None


def test_an_altered_part_is_not_merged(tmp_path):
    built_parts(tmp_path, ROWS, planned(ROWS, 250, kind="sq8"))
    path = tmp_path / "part-00001.faiss"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexMismatch, match="part-00001"):
        merge_parts(tmp_path, "f")
    with pytest.raises(IndexMismatch, match="part-00001"):
        open_parts(tmp_path, "f")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(250, 300), (310, 500)], r"rows 310 to 499 came where row 300 of \[250, 500\) was due"),
        ([(250, 300), (250, 300)], "rows 250 to 299 came where row 300"),
        ([(250, 400)], r"ended before row 400 of \[250, 500\)"),
        ([(250, 501)], r"rows 250 to 500 came where row 250 of \[250, 500\)"),
        ([(0, 250)], "rows 0 to 249 came where row 250"),
    ],
)
def test_missing_repeated_or_foreign_rows_are_refused(tmp_path, pieces, message):
    built_parts(tmp_path, ROWS, planned(ROWS, 250, kind="sq8"), numbers=())
    with pytest.raises(IndexMismatch, match=message):
        build_part(tmp_path, "f", 1, [(first, ROWS[first:stop]) for first, stop in pieces])


def test_a_row_that_is_not_finite_is_refused_by_its_number(tmp_path):
    built_parts(tmp_path, ROWS, planned(ROWS, 250, kind="sq8"), numbers=())
    rows = ROWS.copy()
    rows[321, 2] = np.nan
    with pytest.raises(VectorIndexError, match="row 321 holds 1 values that are NaN"):
        build_part(tmp_path, "f", 1, blocks_of(rows, 250, 500))


@pytest.mark.parametrize("name", ["trained.faiss", "lists.ivfdata", "trained.json"])
def test_a_flipped_byte_in_any_file_is_refused(standing, name):
    content = bytearray((standing / name).read_bytes())
    content[len(content) // 2] ^= 1
    (standing / name).write_bytes(content)
    with pytest.raises(IndexCorrupt, match=rf"{name}: found sha256 .* expected .* run the same build"):
        open_index(standing, "f")


@pytest.mark.parametrize("verify", ["digest", "size"])
@pytest.mark.parametrize("name", ["trained.faiss", "lists.ivfdata", "trained.json"])
def test_a_truncated_or_missing_file_is_refused_even_by_its_size_alone(standing, name, verify):
    path = standing / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IndexCorrupt, match=rf"{name}: found .* bytes, expected"):
        open_index(standing, "f", verify)
    path.unlink()
    with pytest.raises(IndexCorrupt, match=rf"{name}: missing"):
        open_index(standing, "f", verify)


def test_an_index_of_other_rows_is_refused_with_both_fingerprints(standing):
    with pytest.raises(IndexMismatch, match="fingerprint f, expected g"):
        open_index(standing, "g")


def test_a_merged_index_may_be_moved(standing):
    moved = standing.rename(standing.with_name("moved"))
    assert open_index(moved, "f").rows == 600


def test_a_flat_reader_refuses_an_approximate_index_and_the_other_way_round(standing, tmp_path):
    with pytest.raises(IndexCorrupt, match=r"index\.json: kind"):
        read_record(standing)
    (tmp_path / "index.json").write_text(json.dumps({"format_version": 1, "kind": "flat"}))
    assert read_approximate(tmp_path) is None
    with pytest.raises(IndexCorrupt, match=r"index\.json: kind"):
        open_index(tmp_path, "f")


def test_another_version_of_the_format_is_refused(standing):
    record = json.loads((standing / "index.json").read_text())
    (standing / "index.json").write_text(json.dumps({**record, "format_version": 9}))
    with pytest.raises(IndexMismatch, match="found format version 9, this software reads version 1"):
        open_index(standing, "f")


def test_a_full_disk_leaves_no_part_and_says_that_the_same_command_goes_on(tmp_path, monkeypatch):
    built_parts(tmp_path, ROWS, planned(ROWS, 250, kind="sq8"), numbers=())

    def full(index, path):
        raise RuntimeError("write error: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(IndexNotWritten, match=r"No space left on device.*bytes are free.*run the same command"):
        build_part(tmp_path, "f", 0, blocks_of(ROWS, 0, 250))
    assert not list(tmp_path.glob("part-*"))


def test_what_was_measured_is_kept_in_the_record_and_read_back(standing):
    index = open_index(standing, "f")
    own = questions(len(ROWS), 12)
    asked = own.vectors(lambda rows: ROWS[rows])
    truth = exact_search(asked, blocks_of(ROWS), 102)
    measured = measure_recall(index, asked, own, truth, lambda rows: ROWS[rows], 0.9)
    record_measured(standing, measured)
    assert open_index(standing, "f").measured == measured


def test_training_anew_takes_the_merged_index_of_the_old_training_down(standing):
    built_parts(standing, ROWS, planned(ROWS, 250, kind="ivf_sq8"))
    assert read_approximate(standing) is None
    merge_parts(standing, "f")
    record = read_approximate(standing)
    assert record is not None
    assert record.plan.kind == "ivf_sq8"


def test_plans_announce_the_bytes_that_the_index_takes(tmp_path):
    rows = gradients(3000, 64)
    plan = planned(rows, kind="ivf_rabitq2")
    merged(tmp_path, rows, kind="ivf_rabitq2")
    taken = sum((tmp_path / name).stat().st_size for name in ("trained.faiss", "lists.ivfdata"))
    assert abs(taken - plan.disk_bytes) < 0.02 * plan.disk_bytes + 4096
