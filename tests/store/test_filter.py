"""A condition on rows' metadata: exact in what passes, clear where it can't be used, and powerless beyond that."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from influence.errors import QueryError
from influence.store import filter as filters
from influence.store.condition import FUNCTIONS
from influence.store.evaluation import Evaluation
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
        ("-- only a comment", "--where is empty"),
        ("()", "--where is empty"),
        ("(" * 3000 + "true" + ")" * 3000, "nested too deeply to be read. Write a simpler"),
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
        ("len(list_filter([1], x -> x > 0)) > 0", r"list_filter\(\), which is not among the functions"),
        ("x -> x > 0", "a lambda|can't be"),
        ("'{\"a\": 1}'::json = text", "a cast to json"),
        ("[1]::int[100000] = [1]", "a cast to array"),
        ("text is of type", "can't be read"),
        ("not " * 3000 + "true", "nested too deeply|can't be (read|evaluated)|another statement"),
        ("(" * 3000 + "true" + ")" * 3000, "nested too deeply|can't be (read|evaluated)|another statement"),
        ("id = '" + "x" * 1_000_000 + "'", "has 1,000,007 characters"),
        ("id = 5", r"compares id, which is text, with the number 5: write id = '5' in quotes, or id::int"),
        ("5 < ID", r"compares ID, which is text, with the number 5"),
        ("label in ('a', -1.5)", r"compares label, which is text, with the number -1.5"),
        ("id between 1 and 2", r"compares id, which is text, with the number 1"),
        ("id = tokens", r"compares id, which is text, with a number: write id::int"),
        ("id <> tokens + 1", r"compares id, which is text, with a number"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_reason(condition, told):
    with pytest.raises(QueryError, match=rf"(?s){told}"):
        RowFilter.parse(condition)


GREEDY = (
    "repeat('x', 10000000000) = 'x'",
    "lpad('x', 2000000000, 'y') = rpad('x', 2000000000, 'y')",
    "printf('%1000000000d', 1) = 'x'",
    "format('{:1000000000}', 1) = 'x'",
    "bar(tokens, 0, 1, 1000000) = 'x'",
    "len(list_resize([1], 1000000000)) > 1",
    "len(range(1000000000)) > 1",
    "len(generate_series(1, 1000000000)) > 1",
    "levenshtein(text, text) > 0",
    "damerau_levenshtein(text, text) > 0",
    "jaccard(text, text) > 0",
    "replace(text, '', text) = 'x'",
    "regexp_replace(text, '', text, 'g') = 'x'",
    "translate(text, 'a', 'b') = 'x'",
    "len(string_split(text, '')) > 1",
    "len(regexp_extract_all(text, '.')) > 1",
    "hex(text) = 'x'",
    "array_to_string([text], text) = 'x'",
    "to_base(tokens, 2, 1000000) = 'x'",
    "set_bit(bitstring('1', 1000000000), 1, 1) = '1'::bit",
    "factorial(30) > 1",
    "sum(tokens) > 1",
    "string_agg(text, text) = 'x'",
    "json_serialize_sql(text) = 'x'",
    "||".join(["text"] * 9) + " = 'x'",
    "concat(" + ", ".join(["text"] * 9) + ") = 'x'",
    "lower(" * 49 + "text" + ")" * 49 + " = 'x'",
)


@pytest.mark.parametrize("condition", GREEDY)
def test_what_could_take_all_memory_or_time_is_refused_before_it_is_evaluated(condition):
    with pytest.raises(QueryError, match="It may compare and compute with a row's columns, and nothing more"):
        RowFilter.parse(condition)


def test_every_function_that_is_let_through_exists_and_looks_at_one_row():
    with Evaluation(filters.SETTINGS) as evaluation:
        asked = "SELECT DISTINCT function_name, function_type, stability FROM duckdb_functions()"
        there = evaluation.run(lambda database: database.execute(asked).fetchall(), 60)
    kinds = {name: {(kind, stability) for other, kind, stability in there if other == name} for name, _, _ in there}
    consistent = {name for name, found in kinds.items() if found == {("scalar", "CONSISTENT")}}
    # Spelled as functions and parsed to operators; of which `nullif` and `ifnull` are short for a CASE.
    assert FUNCTIONS - consistent <= {"nullif", "ifnull", "xor", "!~~", "ord"}


def test_a_text_is_evaluated_in_parts_however_large_it_is(run, monkeypatch):
    monkeypatch.setattr(filters, "SLICE_BYTES", 1)
    store = run.write_all()
    expected = ["row 3" in meta["text"].lower() for meta in store.meta(range(11))]
    assert passing_rows(store, "text ilike '%ROW 3%'").tolist() == expected


def test_a_condition_is_stopped_when_its_time_is_over(run, monkeypatch):
    store = run.write_all()
    monkeypatch.setattr(filters, "SECONDS", 0.0)
    monkeypatch.setattr(filters, "_slices", endless)
    where = RowFilter("tokens > 5", ("tokens",))
    with pytest.raises(QueryError, match=r"'tokens > 5' took more than 0 seconds over 16,384 rows and was stopped"):
        where.passing(store)


def endless(table):
    while True:
        yield table


def test_a_condition_that_fails_for_a_row_says_so(run):
    with pytest.raises(QueryError, match=r"can't be evaluated: Conversion Error.*row-0"):
        passing_rows(run.write_all(), "id::int > 3")


def test_a_condition_that_no_row_passes_names_the_columns(run):
    with pytest.raises(QueryError, match=r"none of the 11 rows .* passes.*Columns: row \(number\).*norm \(number\)"):
        passing_rows(run.write_all(), "tokens > 1000")


def test_the_database_may_not_touch_files_nor_unlock_itself(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with duckdb.connect(":memory:", config=filters.SETTINGS) as database:
        database.register("metadata", pa.table({"row": np.arange(3)}))
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
