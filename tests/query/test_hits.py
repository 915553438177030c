import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from influence.cli.streams import drawn
from influence.cli.tables import answer_tables
from influence.control_characters import show_controls
from influence.coverage import Coverage
from influence.errors import QueryError
from influence.query.hits import COLUMNS, FORMATS, Hit, Hits, MeasuredQuery, encode, encoded, snippet, write
from influence.query.page import Scale, Section, link, probability, render_page
from influence.recipes import SIGN_RULE, sign_rule


def hit(rank=1, row=7, score=0.5, **changed):
    values = {"id": f"doc-{row}", "source": "json", "uri": "lib/json.py:3", "tokens": 12, "snippet": "some text"}
    return Hit(rank=rank, row=row, score=score, exact=True, **(values | changed))


def hits(promoting=None, opposing=None, **query):
    asked = {"id": "q1", "prompt": "The lamp was lit by", "completion": " beetles.", "log_likelihood": -1.25} | query
    return Hits(
        query=MeasuredQuery(**asked),
        recipe="logra: all of its parts",
        unit="nats per extra copy of the row",
        fingerprint="abc123",
        promoting=(hit(), hit(2, 8, 0.25, source=None, uri=None)) if promoting is None else promoting,
        opposing=(hit(1, 9, -0.125),) if opposing is None else opposing,
    )


class Page(HTMLParser):
    """What a browser would build: elements with attributes, and the text outside of style."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self._open = [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "link", "img"}:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data


def test_json_of_one_answer_is_an_object_with_exactly_the_promised_fields():
    document = json.loads(encode([hits()], "json"))
    fields = ["query", "recipe", "unit", "sign", "magnitudes", "search", "caution", "fingerprint"]
    fields += ["coverage", "body_coverage", "promoting", "opposing"]
    assert list(document) == fields
    assert (document["magnitudes"], document["caution"]) == ("nats", None)
    assert document["sign"] == SIGN_RULE
    assert document["query"] == {
        "id": "q1",
        "prompt": "The lamp was lit by",
        "completion": " beetles.",
        "log_likelihood": -1.25,
        "contrast": None,
        "contrast_log_likelihood": None,
        "turns": None,
    }
    assert document["promoting"][1] == {
        "rank": 2,
        "row": 8,
        "id": "doc-8",
        "score": 0.25,
        "source": None,
        "uri": None,
        "tokens": 12,
        "snippet": "some text",
        "exact": True,
    }


def test_every_form_says_which_share_of_the_trained_weights_is_tracked():
    answer = replace(hits(), coverage=Coverage(trained=200, tracked=100, body=125, body_tracked=100))
    document = json.loads(encode([answer], "json"))
    assert (document["coverage"], document["body_coverage"]) == (0.5, 0.8)
    assert json.loads(hits().to_json())["coverage"] is None
    assert {(record["coverage"], record["body_coverage"]) for record in answer.rows()} == {(0.5, 0.8)}
    for page in (encode([answer], "html").decode(), encode([answer, hits()], "html").decode(), answer._repr_html_()):
        assert "50.0 % of the trained weights tracked, 80.0 % of the body" in Page(page).text
    assert "80.0 % of the body" in " ".join(drawn(*answer_tables(answer)).split())


def test_json_of_several_answers_is_a_list_and_jsonl_a_line_each():
    answers = [hits(id="a"), hits(id="b", completion="two\nlines")]
    listed = json.loads(encode(answers, "json"))
    lines = [json.loads(line) for line in encode(answers, "jsonl").decode().splitlines()]
    assert listed == lines == [answer.to_dict() for answer in answers]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_hold_is_refused(value):
    with pytest.raises(QueryError, match="NaN or infinite"):
        hits(log_likelihood=value).to_json()


@pytest.mark.parametrize("raw", [False, True])
def test_csv_is_a_flat_record_a_hit_whose_texts_no_spreadsheet_runs_unless_they_are_asked_for_raw(raw):
    nasty = '=1+1, "quoted"\nnew line'
    written = encode([hits(promoting=(hit(snippet=nasty),))], "csv", raw_csv=raw)
    read = list(csv.DictReader(io.StringIO(written.decode())))
    assert tuple(read[0]) == COLUMNS
    assert [(r["query_id"], r["side"], r["row"], r["score"]) for r in read] == [
        ("q1", "promoting", "7", "0.5"),
        ("q1", "opposing", "9", "-0.125"),
    ]
    assert read[0]["snippet"] == (nasty if raw else f"'{nasty}")
    assert read[0]["unit"] == "nats per extra copy of the row"


def test_parquet_holds_the_records_of_every_answer_with_types_and_the_sign_rule():
    answers = [hits(id="a"), hits(id="b")]
    table = pq.read_table(io.BytesIO(encode(answers, "parquet")))
    assert table.to_pylist() == [record for answer in answers for record in answer.rows()]
    assert table.schema.metadata[b"sign"].decode() == SIGN_RULE


def test_an_answer_without_hits_keeps_columns_and_types():
    nothing = hits(promoting=(), opposing=())
    table = pq.read_table(io.BytesIO(encode([nothing], "parquet")))
    assert table.column_names == list(COLUMNS)
    assert table.schema == pq.read_table(io.BytesIO(encode([hits()], "parquet"))).schema
    assert list(nothing.to_pandas().columns) == list(COLUMNS)
    assert encode([nothing], "csv").decode() == ",".join(COLUMNS) + "\n"


def test_a_dataframe_has_the_flat_records_and_carries_the_sign_rule():
    frame = hits().to_pandas()
    assert frame["side"].tolist() == ["promoting", "promoting", "opposing"]
    assert frame["score"].tolist() == [0.5, 0.25, -0.125]
    assert frame.attrs["sign"] == SIGN_RULE


@pytest.mark.parametrize("form", FORMATS)
def test_half_a_surrogate_pair_from_a_command_line_breaks_no_format(form):
    content = encode([hits(prompt="caf\udce9")], form)
    assert content
    if form == "json":
        assert json.loads(content)["query"]["prompt"] == "caf\udce9"


@pytest.mark.parametrize("form", FORMATS)
def test_written_files_hold_the_encoded_bytes_and_leave_nothing_beside_them(form, tmp_path):
    path = tmp_path / f"hits.{form}"
    path.write_text("an older answer")
    write([hits()], form, path)
    assert path.read_bytes() == encode([hits()], form)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_older_answer_standing(tmp_path):
    path = tmp_path / "hits.json"
    path.write_text("an older answer")
    with pytest.raises(QueryError):
        write([hits(log_likelihood=math.nan)], "json", path)
    assert path.read_text() == "an older answer"


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(QueryError, match=r"no output format 'xml'\. The formats are json, jsonl, csv, parquet, html"):
        encode([hits()], "xml")  # type: ignore[arg-type]


def test_a_folder_given_as_the_file_is_refused_with_a_name_to_use(tmp_path):
    with pytest.raises(QueryError, match=r"is a folder; name a file .*hits\.json"):
        write([hits()], "json", tmp_path)


def test_a_file_in_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(QueryError, match="nowhere doesn't exist; make it"):
        write([hits()], "json", tmp_path / "nowhere" / "hits.json")


def test_a_snippet_is_one_line_cut_between_words():
    assert snippet("  one\n\ttwo   three ") == "one two three"
    assert snippet("one two three", width=9) == "one two…"
    assert snippet("x" * 500) == "x" * 239 + "…"
    assert snippet("語" * 500, width=10) == "語" * 9 + "…"
    assert snippet("") == ""


def test_a_snippet_escapes_nothing_but_cannot_command_a_terminal():
    assert snippet("<b>&amp;") == "<b>&amp;"
    assert snippet("a\x1b[2Jb\x00c\x9bd") == "a␛[2Jb␀c⟨U+009B⟩d"


HOSTILE = '</style></p><script>alert(1)</script><img src=x onerror="alert(2)">\'"{{ 7*7 }}{% raw %}\u202e&lt;'


def hostile_page():
    evil = hit(id=HOSTILE, source=HOSTILE, uri="javascript:alert(3)//" + HOSTILE, snippet=HOSTILE)
    answer = hits(promoting=(evil,), prompt=HOSTILE, completion=HOSTILE, id=HOSTILE)
    section = Section(answer, heading=HOSTILE, note=HOSTILE, marks={7: HOSTILE})
    return render_page(
        HOSTILE, HOSTILE, [section, Section(answer)], figures={HOSTILE: HOSTILE}, facts={HOSTILE: HOSTILE}
    )


@pytest.mark.parametrize("html", [hostile_page(), hits(promoting=(hit(snippet=HOSTILE),))._repr_html_()])
def test_hostile_text_is_shown_and_never_becomes_markup(html):
    page = Page(html)
    assert show_controls(HOSTILE) in page.text
    assert "\u202e" not in html
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "svg", "form", "base"}
    attributes = [(name, value or "") for _, attrs in page.elements for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "src"]
    assert not [value for name, value in attributes if name == "href" and not value.startswith("#")]
    assert "49" not in page.text.replace("7*7", "")


def test_only_web_addresses_become_links():
    assert link("https://example.org/a?b=1") == "https://example.org/a?b=1"
    for unsafe in ("javascript:alert(1)", "data:text/html,x", "lib/json.py:3", "//example.org", "http://[", "", None):
        assert link(unsafe) is None
    page = Page(encode([hits(promoting=(hit(uri="https://example.org/a?b=1&c"),))], "html").decode())
    assert [attrs["href"] for tag, attrs in page.elements if tag == "a"] == ["https://example.org/a?b=1&c"]


def test_the_page_fetches_nothing_and_follows_light_and_dark():
    html = encode([hits()], "html").decode()
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_says_what_a_contrast_is_with_and_escapes_it():
    answer = hits(contrast=" <i>moths</i>", contrast_log_likelihood=-3.5)
    text = Page(render_page("t", "", [Section(answer)])).text
    assert "rather than <i>moths</i>: −3.50 nats" in " ".join(text.split())
    assert "rather than" not in Page(render_page("t", "", [Section(hits())])).text


def test_the_page_shows_the_question_every_hit_the_unit_and_the_sign_rule():
    page = Page(encode([hits()], "html").decode())
    for expected in (
        "The lamp was lit by",
        "beetles.",
        "−1.25 nats",
        "probability 28.7 %",
        "+0.5000",
        "−0.1250",
        "doc-8",
        "lib/json.py:3",
        "12 tokens",
        "row 9",
        SIGN_RULE,
        "Scores are in nats per extra copy of the row.",
        "logra: all of its parts",
        "abc123",
    ):
        assert expected in page.text


def test_a_notebook_shows_the_unit_and_the_sign_rule_too():
    text = Page(hits()._repr_html_()).text
    assert SIGN_RULE in text
    assert "nats per extra copy of the row" in text


def test_bars_of_both_sides_share_one_scale():
    page = Page(encode([hits()], "html").decode())
    bars = [(attrs["class"], attrs["style"]) for tag, attrs in page.elements if tag == "i"]
    assert bars == [("up", "width: 100.0%"), ("up", "width: 50.0%"), ("down", "width: 25.0%")]


def test_marks_stand_beside_their_rows_only_and_exact_scores_are_named():
    answer = hits(promoting=(hit(), hit(2, 8, 0.25), hit(3, 11, 0.1)), opposing=())
    page = Page(render_page("t", "", [Section(answer, marks={8: "planted", 99: "elsewhere"})]))
    assert page.text.count("planted") == 1
    assert "elsewhere" not in page.text
    assert page.text.count("exact") == 3
    assert "No row opposes it." in page.text
    guessed = Hit(1, 7, "doc-7", 0.5, None, None, 1, "", exact=False)
    text = Page(encode([hits(promoting=(guessed,))], "html").decode()).text
    page = encode([hits(promoting=(guessed,), opposing=())], "html").decode()
    assert 'class="badge exact"' not in page
    assert "(empty text)" in text
    assert re.search(r"\b1 token\b", text)


def test_several_questions_are_listed_and_lead_to_their_answers():
    page = Page(render_page("t", "one\n\ntwo", [Section(hits(id="a"), heading="First"), Section(hits(id="b"))]))
    targets = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    ids = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert targets == [f"#{name}" for name in ids] == ["#question-1", "#question-2"]
    assert page.text.count("logra: all of its parts") == 1


@pytest.mark.parametrize(
    ("largest", "score", "written"),
    [
        (0.3124, 0.05, "+0.0500"),
        (0.3124, -0.3124, "−0.3124"),
        (1234.5, 1.0, "+1"),
        (3.124e-6, 8e-7, "+0.800 × 10⁻⁶"),
        (2.5e9, -2.5e9, "−2.500 × 10⁹"),
        (0.0, 0.0, "+0.000"),
    ],
)
def test_scores_are_written_to_the_fourth_digit_of_the_largest(largest, score, written):
    assert Scale(largest).written(score) == written


def test_a_probability_too_small_to_picture_is_left_out():
    assert probability(math.log(0.5)) == "50 %"
    assert probability(-40.0) == ""
    assert probability(1e-9) == "100 %"


@pytest.mark.parametrize("baseline", ["bm25", "repsim"])
def test_a_baselines_answer_says_what_its_scores_are_and_shows_one_side_and_no_likelihood_it_has_not(baseline):
    answer = replace(hits(opposing=(), log_likelihood=None), baseline=baseline)
    assert answer.to_dict()["sign"] == answer.to_pandas().attrs["sign"] == sign_rule(baseline)
    for html in (encode([answer], "html").decode(), answer._repr_html_()):
        text = " ".join(Page(html).text.split())
        assert sign_rule(baseline) in text
        assert "Most alike" in text
        assert not any(word in text for word in ("Opposing", "Promoting", "likelier", "log-likelihood", SIGN_RULE))
    assert json.loads(answer.to_json())["query"]["log_likelihood"] is None


def test_answers_of_influence_and_of_a_baseline_side_by_side_each_bring_their_sentence():
    both = [hits(), replace(hits(opposing=()), baseline="bm25")]
    table = pq.read_table(io.BytesIO(encode(both, "parquet")))
    assert table.schema.metadata[b"sign"].decode() == f"{SIGN_RULE}\n{sign_rule('bm25')}"
    text = Page(encode(both, "html").decode()).text
    assert SIGN_RULE in text
    assert sign_rule("bm25") in text


@pytest.mark.parametrize(
    ("best", "query", "unit", "expected"),
    [
        (1.24, {}, "nats per extra copy of the row", "nats"),
        (1.26, {}, "nats per extra copy of the row", "rank_only"),
        (1.26, {}, "nats per extra copy of the row (its loss the mean over its tokens)", "rank_only"),
        (
            134277.0,
            {"log_likelihood": -8.4},
            "nats (one SGD step on the row's summed loss)",
            "rank_only",
        ),
        (9.0, {"contrast": " bees", "contrast_log_likelihood": -3.0}, "nats per extra copy of the row", "unchecked"),
        (9.0, {}, "nats per unit of learning rate (one SGD step on the row's summed loss)", "unchecked"),
        (9.0, {}, "nats of log-odds per extra copy of the row, p(1−p) taken as 1", "unchecked"),
        (0.9, {}, "cosine (no unit)", "no_unit"),
        (9.0, {"log_likelihood": None}, "BM25 (no unit)", "no_unit"),
        (0.0, {"log_likelihood": 0.0}, "nats per extra copy of the row", "nats"),
    ],
)
def test_a_score_beyond_what_the_probability_allows_is_a_rank_and_every_form_says_so(best, query, unit, expected):
    answer = replace(hits((hit(score=best),), **query), unit=unit)
    assert answer.magnitudes == json.loads(encode([answer], "json"))["magnitudes"] == expected
    assert {row["magnitudes"] for row in answer.rows()} == {expected}
    said = answer.caution
    assert (said is not None) == (expected == "rank_only")
    frame = answer.to_pandas()
    assert (frame.attrs["magnitudes"], frame.attrs["caution"]) == (expected, said)
    page = Page(encode([answer], "html").decode()).text
    assert ("a rank, not a number of nats" in page) == (said is not None)
    table = " ".join(drawn(*answer_tables(answer), plain=True).split())
    assert ("a rank, not a number of nats" in table) == (said is not None)
    if said is not None:
        assert said in page
        assert f"{-answer.query.log_likelihood:.3g} nats at most" in said


@pytest.mark.parametrize("search", ["exact", "approximate", "below_recall"])
def test_an_answer_whose_search_does_not_reach_its_recall_says_so_in_every_form(search):
    answer = replace(hits(), search=search)
    document = json.loads(encode([answer], "json"))
    assert document["search"] == search
    assert {row["search"] for row in answer.rows()} == {search}
    assert set(pq.read_table(io.BytesIO(encode([answer], "parquet")))["search"].to_pylist()) == {search}
    page = Page(encode([answer], "html").decode()).text
    table = " ".join(drawn(*answer_tables(answer), plain=True).split())
    for text in (page, table, document["caution"] or ""):
        assert ("--where 'row >= 0'" in text) == (search == "below_recall")


def test_a_caution_names_both_reasons_where_there_are_two():
    said = replace(hits((hit(score=9.0),)), search="below_recall").caution
    assert "a rank, not a number of nats" in said
    assert "rows may be missing" in said


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_answers_that_come_one_by_one_give_the_bytes_of_all_of_them(form, count):
    answers = [hits(id=f"q{number}", completion="a\u2028b\n{") for number in range(count)]
    whole = encode(answers, form)
    assert b"".join(encoded(iter(answers), form)) == whole
    if form == "json" and count != 1:
        document = [answer.to_dict() for answer in answers]
        assert whole.decode() == json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def test_parquet_of_answers_that_come_one_by_one_holds_them_all():
    answers = [hits(id=f"q{number}") for number in range(600)]
    written = pq.ParquetFile(io.BytesIO(b"".join(encoded(iter(answers), "parquet"))))
    assert written.metadata.num_row_groups > 1
    assert written.read().column("query_id").to_pylist()[::3] == [answer.query.id for answer in answers]
    assert written.schema_arrow.metadata[b"sign"].decode() == SIGN_RULE


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "parquet"])
def test_an_answer_is_written_before_the_next_but_one_is_asked_for(form):
    given = []

    def answers():
        for number in range(2000):
            given.append(number)
            yield hits(id=f"q{number}")

    pieces = encoded(answers(), form)
    assert next(pieces) is not None
    next(pieces)
    assert len(given) <= 512


def test_a_file_whose_answers_fail_midway_is_not_there(tmp_path):
    def answers():
        yield hits()
        raise QueryError("the second can't be asked")

    with pytest.raises(QueryError, match="the second"):
        write(answers(), "jsonl", tmp_path / "hits.jsonl")
    assert list(tmp_path.iterdir()) == []
