"""Groups: sums and means are those of a plain loop, intervals those of drawing again, and pictures hold only text."""

import json
from dataclasses import replace
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

import influence.api as runs
from influence.config import parse_config
from influence.errors import DataError, QueryError
from influence.groups import groups as groups_module
from influence.groups.bars import group_bars
from influence.groups.figure import check_figure, render
from influence.groups.file import encode
from influence.groups.groups import COLUMNS, DRAWS, GroupInfluences, GroupSettings, summed, with_magnitudes
from influence.scan.table import QueryRecord
from influence.store.columns import Categories

SETTINGS = GroupSettings(replicates=2000)


def categories(values):
    names = tuple(dict.fromkeys(value for value in values if value is not None))
    return Categories(np.array([-1 if value is None else names.index(value) for value in values], np.int32), names)


def blocks(scores, size):
    return ((first, scores[first : first + size]) for first in range(0, len(scores), size))


@pytest.fixture
def given():
    chance = np.random.default_rng(0)
    groups = categories([["a", "b", None][number] for number in chance.integers(0, 3, 300)])
    sets = categories([["x", "y"][number] for number in chance.integers(0, 2, 24)])
    return chance.standard_normal((300, 24)).astype(np.float32) + 0.3, groups, sets


def test_sums_and_means_are_those_of_a_plain_loop(given):
    scores, groups, sets = given
    for line in summed(blocks(scores, 37), groups, sets, SETTINGS):
        total = 0.0
        counted = 0
        for row in range(300):
            if groups.name(row) == line.group:
                asked = [float(scores[row, q]) for q in range(24) if sets.name(q) == line.set]
                total += sum(asked) / len(asked)
                counted += 1
        assert line.rows == counted
        assert line.queries == sum(sets.name(q) == line.set for q in range(24))
        assert line.sum == pytest.approx(total, rel=1e-9)
        assert line.mean == pytest.approx(total / counted, rel=1e-9)


def test_rows_without_a_value_are_a_group_of_their_own_and_groups_are_in_the_order_of_their_sums(given):
    scores, groups, sets = given
    lines = summed(blocks(scores, 300), groups, sets, SETTINGS)
    assert {line.group for line in lines} == {"a", "b", None}
    for name in ("x", "y"):
        sums = [line.sum for line in lines if line.set == name]
        assert sums == sorted(sums, reverse=True)


def test_intervals_are_the_same_whatever_the_blocks_and_others_with_another_seed(given):
    scores, groups, sets = given
    one, other = (summed(blocks(scores, size), groups, sets, SETTINGS) for size in (300, 1))
    for a, b in zip(one, other, strict=True):
        assert (a.sum_low, a.mean_high) == pytest.approx((b.sum_low, b.mean_high), rel=1e-5)
    drawn_again = summed(blocks(scores, 300), groups, sets, GroupSettings(replicates=2000, seed=1))
    assert one[0].mean_low != drawn_again[0].mean_low


def test_the_interval_of_a_sum_is_that_of_drawing_queries_again(given):
    scores, groups, _ = given
    sets = categories(["x"] * 24)
    chance = np.random.default_rng(9)
    for line in summed(blocks(scores, 100), groups, sets, SETTINGS):
        member = np.array([groups.name(row) == line.group for row in range(300)])
        by_query = scores[member].sum(0, dtype=np.float64)
        drawn = [by_query[chance.integers(0, 24, 24)].mean() for _ in range(4000)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        width = high - low
        assert (line.sum_low, line.sum_high) == pytest.approx((low, high), abs=0.1 * width)


def test_the_interval_of_a_mean_is_that_of_drawing_queries_and_rows_again(given):
    scores, groups, _ = given
    sets = categories(["x"] * 24)
    chance = np.random.default_rng(9)
    for line in summed(blocks(scores, 100), groups, sets, SETTINGS):
        held = scores[[groups.name(row) == line.group for row in range(300)]].astype(np.float64)
        drawn = []
        for _ in range(4000):
            rows = held[chance.integers(0, len(held), len(held))]
            drawn.append(rows[:, chance.integers(0, 24, 24)].mean())
        low, high = np.quantile(drawn, (0.025, 0.975))
        assert (line.mean_low, line.mean_high) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_draws_are_poisson_of_mean_one():
    from scipy.stats import poisson

    shares = np.bincount(DRAWS) / len(DRAWS)
    np.testing.assert_allclose(shares, poisson.pmf(np.arange(len(shares)), 1), atol=2**-16)


def test_a_group_of_one_row_and_a_set_of_one_query_have_no_interval_and_say_why():
    scores = np.array([[1.0, 2.0, 4.0], [3.0, 5.0, 7.0], [0.0, 1.0, 2.0]], np.float32)
    lines = summed(blocks(scores, 3), categories(["a", "a", "b"]), categories(["x", "x", "y"]), SETTINGS)
    found = {(line.set, line.group): line for line in lines}
    single = found["x", "b"]
    assert (single.sum, single.mean) == (0.5, 0.5)
    assert single.sum_low is not None
    assert (single.mean_low, single.mean_high) == (None, None)
    assert "one row" in single.note
    both = found["y", "b"]
    assert (both.sum_low, both.mean_low) == (None, None)
    assert "one row" in both.note
    assert "one query" in both.note
    assert found["y", "a"].sum_low is None
    assert found["y", "a"].mean_low is not None
    assert found["x", "a"].note is None


def test_more_groups_than_are_held_are_refused_with_their_number(given, monkeypatch):
    scores, groups, sets = given
    monkeypatch.setattr(groups_module, "MOST_SUMS", 5)
    with pytest.raises(QueryError, match=r"3 groups on 2 sets of queries are 6 sums, at most 5"):
        summed(blocks(scores, 300), groups, sets, SETTINGS)


@pytest.fixture
def told(given):
    scores, groups, sets = given
    named = Categories(groups.codes, ('<script>alert("x")</script>', "b\x01"))
    lines = summed(blocks(scores, 300), named, sets, SETTINGS)
    return GroupInfluences("source", "topic", "nats", "Positive: up. Negative: down.", "recipe", "run", SETTINGS, lines)


def test_the_picture_is_xml_with_a_title_and_a_description_and_no_markup_of_the_data(told):
    drawn = render(group_bars(told))
    root = ElementTree.fromstring(drawn.encode())
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "Influence by source"
    assert "Of 3 groups" in root.find(f"{space}desc").text
    assert root.attrib["aria-labelledby"] == "drawing-title drawing-about"
    assert "<script" not in drawn
    assert "prefers-color-scheme: dark" in drawn
    tooltips = [
        group.findtext(f"{space}title") for group in root.iter(f"{space}g") if group.find(f"{space}path") is not None
    ]
    assert len([tooltip for tooltip in tooltips if tooltip and ", from " in tooltip]) == 12
    page = render(group_bars(told), ["<b>In nats.</b>"], page=True)
    assert "&lt;b&gt;In nats.&lt;/b&gt;" in page
    assert "<svg" in page


def test_every_form_holds_the_same_numbers_with_unit_and_sign(told):
    found = json.loads(encode(told, "json"))
    assert found["sign"] == "Positive: up. Negative: down."
    assert "over queries and rows" in found["intervals"]
    lines = encode(told, "csv").decode().splitlines()
    assert lines[0] == ",".join((*COLUMNS, "unit"))
    table = pq.read_table(BytesIO(encode(told, "parquet")))
    assert table.column("mean_low").to_pylist() == [line["mean_low"] for line in found["lines"]]
    assert table.schema.metadata[b"sign"] == b"Positive: up. Negative: down."
    frame = told.to_pandas()
    assert frame["sum"].tolist() == [line["sum"] for line in found["lines"]]
    assert frame.attrs["unit"] == "nats"


def test_a_sum_beyond_the_queries_probability_is_a_rank_only_and_so_is_every_sum_of_impossible_scores(given):
    scores, groups, sets = given
    lines = summed(blocks(scores, 300), groups, sets, SETTINGS)
    largest = {name: max(line.sum for line in lines if line.set == name) for name in sets.names}
    names = [sets.names[code] for code in sets.codes]
    # The first set's probabilities allow all but its largest sum; of the second a single row's score is impossible.
    first, second = sets.names
    said = {first: -0.999 * largest[first], second: -1e9}
    kinds = {first: "nats", second: "rank_only"}
    records = [QueryRecord(said[name], kinds[name]) for name in names]
    read = with_magnitudes(lines, sets, records, "nats per extra copy of the row")
    for line in read:
        assert line.magnitudes == ("rank_only" if line.set == second or line.sum == largest[first] else "nats")
    queries = tuple(record.magnitudes for record in records)
    found = GroupInfluences("source", "topic", "nats", "Positive: up.", "recipe", "run", SETTINGS, read, queries)
    assert f"For {names.count(second)} of {len(names)} queries the largest score" in found.caution
    possible = replace(found, queries=tuple("nats" for _ in names))
    beyond = sum(line.magnitudes == "rank_only" for line in read)
    assert possible.caution.startswith(f"{beyond} of {len(read)} sums are more than the mean log-likelihood")
    assert json.loads(encode(found, "json"))["caution"] == found.to_pandas().attrs["caution"] == found.caution
    table = pq.read_table(BytesIO(encode(found, "parquet")))
    assert table.column("magnitudes").to_pylist() == [line.magnitudes for line in read]
    assert table.schema.metadata[b"caution"].decode() == found.caution


def test_a_figure_of_another_suffix_is_refused(tmp_path):
    with pytest.raises(QueryError, match=r"written as \.svg or \.html"):
        check_figure(tmp_path / "bars.png")
    (tmp_path / "bars.svg").write_text("")
    with pytest.raises(QueryError, match=r"exists already"):
        check_figure(tmp_path / "bars.svg")


@pytest.fixture(scope="module")
def run(model_folder, corpus_file, tmp_path_factory, client):
    """Forty rows of three shelves; rows 0 and 7 of none, and row 9 of a shelf of its own; a column that has no role."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    records = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    for row, record in enumerate(records):
        record["language"] = "en" if row % 4 else "cy"
        record["source"] = {0: None, 7: None, 9: "alone"}.get(row, record["source"])
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path_factory.mktemp("runs") / "x")


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    texts = ("The river was named after a cartographer.", "In winter the harbour freezes.", "Sort the list in place.")
    records = [{"text": text, "topic": topic} for text, topic in zip(texts, ("sea", "sea", "code"), strict=True)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_runs_groups_add_up_to_its_scores(run, dev):
    found = run.groups(dev, by="source", sets="topic", replicates=100)
    scores = run.score([{"text": "Sort the list in place."}])[0]
    code = {line.group: line for line in found.of_set("code")}
    assert {name: line.rows for name, line in code.items()} == {
        "shelf-0": 12,
        "shelf-1": 12,
        "shelf-2": 13,
        None: 2,
        "alone": 1,
    }
    assert sum(line.sum for line in code.values()) == pytest.approx(float(scores.sum()), rel=1e-4)
    assert code["alone"].mean == pytest.approx(float(scores[9]), rel=1e-4)
    assert code["alone"].mean_low is None
    assert found.unit == "nats per extra copy of the row"
    assert found.set_names == ["sea", "code"]
    assert found.queries == run.score([json.loads(line) for line in dev.read_text().splitlines()]).magnitudes


def test_rows_are_grouped_by_any_column_of_the_data_and_an_unknown_one_lists_those_there_are(run, dev):
    found = run.groups(dev, by="language", replicates=100)
    assert {line.group: line.rows for line in found.lines} == {"cy": 10, "en": 30}
    with pytest.raises(QueryError, match=r"no column 'shelf' .*there are source, label, uri, text, id, language"):
        run.groups(dev, by="shelf")
    with pytest.raises(QueryError, match=r"dev\.jsonl has no column 'shelf' .*it has text, topic"):
        run.groups(dev, sets="shelf")


def test_an_empty_queries_file_is_refused_by_name(run, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match=r"none\.jsonl is empty"):
        run.groups(tmp_path / "none.jsonl")


def test_a_scan_that_stands_is_used_again_and_cleared_away(run, dev, tmp_path, monkeypatch):
    out = tmp_path / "groups.parquet"

    def interrupted(*_):
        raise KeyboardInterrupt

    from influence.errors import Incomplete

    with monkeypatch.context() as patch:
        patch.setattr(groups_module.GroupSums, "add", interrupted)
        with pytest.raises(Incomplete, match=r"groups\.parquet\.parts"):
            run.groups(dev, replicates=100, out=out)
    kept = list((tmp_path / "groups.parquet.parts").glob("scores-*.parquet"))
    assert len(kept) == 1
    assert pq.ParquetFile(kept[0]).metadata.num_rows == 40
    monkeypatch.setattr(type(run), "score_to", interrupted)
    assert len(run.groups(dev, replicates=100, out=out).lines) == 5
    assert not (tmp_path / "groups.parquet.parts").exists()
