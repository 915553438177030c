"""A condition on rows' metadata: exact in what passes, clear where it can't be used, and powerless beyond that."""

import numpy as np
import pytest

from influence.errors import QueryError
from influence.store import filter as filters
from influence.store.filter import RowFilter, passing_rows

CONDITIONS = {
    "tokens > 5": lambda meta: meta["tokens"] > 5,
    "source = 'book'": lambda meta: meta["source"] == "book",
    "source is null and tokens <= 9": lambda meta: meta["source"] is None and meta["tokens"] <= 9,
    "source = 'book' or row in (1, 4)": lambda meta: meta["source"] == "book" or meta["row"] in (1, 4),
    "id like 'row-1%'": lambda meta: meta["id"].startswith("row-1"),
    "not (loss between 1 and 2)": lambda meta: not 1 <= meta["loss"] <= 2,
    "text ilike '%ROW 3%' -- a comment": lambda meta: "row 3" in meta["text"],
    "case when row % 2 = 0 then true else tokens = 3 end": lambda meta: meta["row"] % 2 == 0 or meta["tokens"] == 3,
    "label::int >= 4": lambda meta: meta["label"] is not None and int(meta["label"]) >= 4,
    "lower(upper(ID)) = 'row-2'": lambda meta: meta["id"] == "row-2",
    "norm > 1e3 and length(text) > 3": lambda meta: meta["norm"] > 1e3,
    "row > 2) or (row = 0": lambda meta: meta["row"] > 2 or meta["row"] == 0,
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_rows_pass_where_the_condition_is_true_and_not_where_it_is_null(run, monkeypatch, condition):
    store = run.write_all()
    monkeypatch.setattr(filters, "BATCH", 3)
    expected = [bool(CONDITIONS[condition](meta)) for meta in store.meta(range(11))]
    assert passing_rows(store, condition).tolist() == expected
    assert RowFilter.parse(condition).passing(store, 2, 9).tolist() == expected[2:9]


def test_only_the_columns_that_are_named_are_read(run, monkeypatch):
    store = run.write_all()
    read = []
    tables = filters._tables
    monkeypatch.setattr(filters, "_tables", lambda path, columns: read.append(columns) or tables(path, columns))
    passing_rows(store, "tokens > 5 and Source is null")
    assert set(read) == {("source", "tokens")}


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("", "--where is empty"),
        ("tokens >", "can't be read: syntax error"),
        ("source = 'x", "can't be read: unterminated"),
        ("sauce = 'x'", r"no column 'sauce'. Columns: row \(number\), id \(text\).*single quotes"),
        ('source = "book"', "no column 'book'.*single quotes"),
        ("metadata.tokens > 5", "no column 'metadata.tokens'"),
        ("tokens", "of type INTEGER, expected true or false"),
        ("nosuch(tokens) > 1", "no function 'nosuch'"),
        ("tokens + 'x' > 1", "can't be evaluated: Binder Error"),
        ("tokens > 1; drop table metadata", "can't be read|another statement"),
        ("1 = 1); drop table metadata; select (1", "another statement"),
        ("tokens > 5), (1 = 1", "another clause|of type"),
        ("tokens > 5) from metadata where (row = 1", "another statement|another clause"),
        ("row in (select row from metadata)", "a subquery"),
        ("exists (from read_text('/etc/hostname'))", "a subquery"),
        ("read_text('/etc/hostname') = 'x'", "no function of a row alone"),
        ("count(*) > 1", "no function of a row alone"),
        ("random() > 0.5", "no function of a row alone"),
        ("now() > '2020-01-01'", "no function of a row alone"),
        ("current_setting('threads') = '1'", "no function of a row alone"),
        ("nextval('x') > 1", "no function of a row alone"),
        ("getenv('HOME') = 'x'", "no function"),
        ("row_number() over () > 1", "a window"),
        ("* > 1", "a star"),
        ("tokens > $1", "a parameter"),
        ("len(list_filter([1], x -> x > 0)) > 0", "a lambda"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_reason(condition, told):
    with pytest.raises(QueryError, match=rf"(?s){told}"):
        RowFilter.parse(condition)


def test_a_condition_that_fails_for_a_row_says_so(run):
    with pytest.raises(QueryError, match=r"can't be evaluated: Conversion Error.*row-0"):
        passing_rows(run.write_all(), "id::int > 3")


def test_a_condition_that_no_row_passes_names_the_columns(run):
    with pytest.raises(QueryError, match=r"none of the 11 rows .* passes.*Columns: row \(number\).*norm \(number\)"):
        passing_rows(run.write_all(), "tokens > 1000")


def test_the_database_may_not_touch_files_nor_unlock_itself(tmp_path):
    import duckdb
    import pyarrow as pa

    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with filters._database(pa.table({"row": np.arange(3)})) as database:
        for statement in (
            f"SELECT * FROM read_csv('{secret}')",
            f"COPY metadata TO '{tmp_path}/out.csv'",
            f"ATTACH '{tmp_path}/x.db'",
            "SET enable_external_access = true",
            "SET lock_configuration = false",
            "INSTALL httpfs",
            "SELECT * FROM secret",
        ):
            with pytest.raises(duckdb.Error):
                database.execute(statement)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
