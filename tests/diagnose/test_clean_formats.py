"""Exports of every format, however its rows are written: what stays is as it was, and it can be undone."""

import csv
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from influence.data.records import records
from influence.export.clean import export_clean
from influence.export.clean_columns import parquet_batches
from influence.export.undo import undo_export
from influence.export.verdicts import Wish
from tests.diagnose.exported import run_of, table_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda deeper: st.lists(deeper, max_size=2) | st.dictionaries(TEXTS, deeper, max_size=2),
    max_leaves=4,
)


@st.composite
def json_lines(draw):
    """A line of JSON in any spelling, and the record it is."""
    pairs = [("text", draw(TEXTS)), ("label", draw(TEXTS.filter(bool) | st.integers(0, 99)))]
    pairs += draw(st.lists(st.tuples(TEXTS, VALUES), max_size=3))
    if draw(st.booleans()):
        pairs.append(("label", draw(TEXTS.filter(bool) | st.integers(0, 99))))
    space = draw(st.sampled_from(["", " ", "\t "]))
    ascii_only = draw(st.booleans())
    parts = [
        f"{space}{json.dumps(key, ensure_ascii=ascii_only)}{space}:{space}{json.dumps(value, ensure_ascii=ascii_only)}"
        for key, value in draw(st.permutations(pairs))
    ]
    return (
        draw(st.sampled_from(["", " "])) + "{" + ",".join(parts) + space + "}" + draw(st.sampled_from(["", "  ", "\r"]))
    )


@given(
    lines=st.lists(json_lines() | st.sampled_from(["", "  ", "\r"]), min_size=1, max_size=8),
    mark=st.booleans(),
    ended=st.booleans(),
    fate=st.lists(st.sampled_from(["keep", "drop", "relabel"]), min_size=8, max_size=8),
    to=TEXTS.filter(bool),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_spelling_of_its_lines_a_file_is_cleaned_and_restored(
    lines, mark, ended, fate, to, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("odd")
    path = folder / "rows.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + "\n".join(lines).encode() + (b"\n" if ended else b""))
    whole = [record for _, record in records(str(path), "jsonl", ())]
    fates = dict(enumerate(fate[: len(whole)]))
    if "keep" not in fates.values():
        return
    drop = [row for row, what in fates.items() if what == "drop"]
    numbers = {row for row, record in enumerate(whole) if isinstance(record["label"], int)}
    relabel = {row: "7" if row in numbers else to for row, what in fates.items() if what == "relabel"}
    run = run_of(path)
    table = table_of(run, folder / "issues.parquet", drop=drop, relabel=relabel)
    done = export_clean(run, Wish((table,), relabel=bool(relabel)), folder / "clean.jsonl")
    expected = [
        record | ({"label": 7 if row in numbers else to} if row in relabel else {})
        for row, record in enumerate(whole)
        if row not in drop
    ]
    assert [record for _, record in records(str(done.out), "jsonl", ())] == expected
    assert undo_export(done.out, folder / "back.jsonl").data == run.manifest.fingerprint_parts["data"]
    assert (folder / "back.jsonl").read_bytes() == path.read_bytes()


CELLS = st.text(st.sampled_from('ab ,"\n;é'), max_size=6) | st.just("two\r\nlines")


@given(
    cells=st.lists(st.tuples(CELLS, CELLS.filter(bool), CELLS), min_size=1, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    blank=st.booleans(),
    fate=st.lists(st.sampled_from(["keep", "drop", "relabel"]), min_size=6, max_size=6),
    to=CELLS.filter(bool),
)
@settings(max_examples=60, deadline=None)
def test_csv_rows_keep_their_quotes_and_line_ends(cells, quoting, end, blank, fate, to, tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    path = folder / "rows.csv"
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=quoting, lineterminator=end)
    writer.writerow(["text", "label", "more"])
    for number, line in enumerate(cells):
        writer.writerow(line)
        if blank and number % 2:
            written.write(end)
    path.write_text(written.getvalue(), encoding="utf-8", newline="")
    whole = [record for _, record in records(str(path), "csv", ())]
    fates = dict(enumerate(fate[: len(whole)]))
    if "keep" not in fates.values():
        return
    drop = [row for row, what in fates.items() if what == "drop"]
    relabel = {row: to for row, what in fates.items() if what == "relabel"}
    run = run_of(path)
    table = table_of(run, folder / "issues.parquet", drop=drop, relabel=relabel)
    done = export_clean(run, Wish((table,), relabel=bool(relabel)), folder / "clean.csv")
    expected = [
        record | ({"label": to} if row in relabel else {}) for row, record in enumerate(whole) if row not in drop
    ]
    assert [record for _, record in records(str(done.out), "csv", ())] == expected
    undo_export(done.out, folder / "back.csv")
    assert (folder / "back.csv").read_bytes() == path.read_bytes()


def test_parquet_keeps_schema_metadata_compression_and_values(tmp_path, monkeypatch):
    monkeypatch.setattr("influence.export.clean_columns.BATCH", 3)
    monkeypatch.setattr("influence.export.clean_parquet.BATCH", 3)
    schema = pa.schema(
        [
            pa.field("text", pa.string(), False),
            pa.field("label", pa.dictionary(pa.int8(), pa.string())),
            pa.field("when", pa.timestamp("ns")),
            pa.field("tags", pa.list_(pa.struct([pa.field("k", pa.float32())]))),
        ],
        metadata={b"made by": b"a test"},
    )
    rows = [
        {"text": f"t{row}", "label": "ab"[row % 2], "when": row * 10**9 + 1, "tags": [{"k": row / 3}] * (row % 3)}
        for row in range(11)
    ]
    path = tmp_path / "rows.parquet"
    whole = pa.Table.from_pylist(rows, schema)
    pq.write_table(whole, path, compression="gzip", row_group_size=4)
    run = run_of(path)
    table = table_of(run, tmp_path / "issues.parquet", drop=[0, 4, 5, 10], relabel={2: "c", 9: "a"})
    done = export_clean(run, Wish((table,), relabel=True), tmp_path / "clean.parquet")
    kept = [row for row in range(11) if row not in (0, 4, 5, 10)]
    found, whole = pq.read_table(done.out), pq.read_table(path)
    assert found.schema.equals(whole.schema, check_metadata=True)
    assert found.drop_columns("label").equals(whole.take(kept).drop_columns("label"))
    assert found.column("label").to_pylist() == [{2: "c", 9: "a"}.get(row, "ab"[row % 2]) for row in kept]
    assert pq.ParquetFile(done.out).metadata.row_group(0).column(0).compression == "GZIP"
    undo_export(done.out, tmp_path / "back.parquet")
    back = pq.read_table(tmp_path / "back.parquet")
    assert back.schema.equals(whole.schema, check_metadata=True)
    assert back.to_pylist() == whole.to_pylist()


def test_wide_rows_are_held_by_their_bytes_and_not_by_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr("influence.export.clean_columns.BATCH_BYTES", 1000)
    path = tmp_path / "rows.parquet"
    rows = [{"text": f"t{row}", "label": 0, "blob": os.urandom(400)} for row in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pq.ParquetFile(path) as file:
        assert max(map(len, parquet_batches(file))) <= 2
    run = run_of(path)
    done = export_clean(run, Wish((table_of(run, tmp_path / "issues.parquet", drop=[3]),)), tmp_path / "clean.parquet")
    assert pq.read_table(done.out).to_pylist() == rows[:3] + rows[4:]
    assert pq.ParquetFile(done.out).metadata.num_row_groups >= 3
    undo_export(done.out, tmp_path / "back.parquet")
    assert pq.read_table(tmp_path / "back.parquet").to_pylist() == rows
