"""An examination: what its table says, what it resumes, and what it refuses. The checks' own tests are beside it."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import influence.api as runs
from influence.artifacts.lock import lock_folder
from influence.cli.main import main
from influence.config import parse_config
from influence.errors import ConfigError, Incomplete, QueryError, RunLocked
from influence.issues.checks import registry as checks
from influence.issues.checks.empty import ZeroGradientSettings
from influence.issues.checks.registry import Check, IssueSettings, parse_settings
from influence.issues.finding import Case, Finding
from influence.issues.issues import examine
from influence.issues.table import read_about, read_issues

PLAIN = ("empty", "zero_gradient")
DROPPING = ("harmful", "poisoned", "near_duplicate")


@pytest.fixture(scope="module")
def run(model_folder, corpus_file, tmp_path_factory, client):
    """Forty rows; row 7 is a word of one token, from which nothing is learnt."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = corpus_file.read_text().splitlines()
    lines[7] = json.dumps({"text": "a", "id": "row-7", "source": None, "uri": None, "label": 1})
    data.write_text("".join(f"{line}\n" for line in lines))
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path_factory.mktemp("runs") / "x")


def planted(issue, *flagged, action="review", label=None):
    """A check that flags these rows, each with its successor as evidence."""

    def check(subject, settings):
        scores = np.linspace(0, 1, subject.rows, dtype=np.float32)
        scores[3] = np.nan
        cases = {row: Case((f"row-{row + 1}",), action, f"{action}: {issue}", label) for row in flagged}
        return Finding(issue, scores, cases, "What it means.", "Flagged above 0.5.")

    return Check("planted", lambda subject: None, check)


@pytest.fixture
def two_checks(monkeypatch):
    """`zero_gradient` flags rows 5 and 6 for review, and `empty` row 6 to be dropped."""
    monkeypatch.setitem(checks.CHECKS, "zero_gradient", planted("zero_gradient", 5, 6))
    monkeypatch.setitem(checks.CHECKS, "empty", planted("empty", 6, action="drop"))


def test_the_table_has_a_line_a_row_with_flags_scores_evidence_and_what_to_do(run, tmp_path, two_checks):
    out = tmp_path / "issues.parquet"
    found = examine(run, out, IssueSettings(), checks=PLAIN)
    table = pq.read_table(out)
    assert table.column("row").to_pylist() == list(range(40))
    assert table.column("id").to_pylist() == [f"row-{row}" for row in range(40)]
    lines = table.to_pylist()
    assert [line["row"] for line in lines if line["is_zero_gradient"]] == [5, 6]
    assert lines[3]["zero_gradient_score"] is None
    assert lines[39]["zero_gradient_score"] == 1
    assert lines[5]["evidence"] == {"empty": None, "zero_gradient": ["row-6"]}
    assert lines[4]["evidence"] is None
    assert (lines[5]["action"], lines[6]["action"], lines[4]["action"]) == ("review", "drop", None)
    assert lines[6]["suggestion"] == "drop: empty; review: zero_gradient"
    assert found.worst["zero_gradient"] == ["row-6", "row-5"]
    told = read_about(out)
    assert (told.run, told.rows, told.issues) == (run.manifest.rows_fingerprint, 40, PLAIN)
    assert told.rules["empty"] == "Flagged above 0.5."
    assert not (tmp_path / "issues.parquet.parts").exists()


def test_a_label_is_suggested_where_relabelling_is_and_nothing_stronger(run, tmp_path, monkeypatch):
    monkeypatch.setitem(checks.CHECKS, "zero_gradient", planted("zero_gradient", 5, 6, action="relabel", label="2"))
    monkeypatch.setitem(checks.CHECKS, "empty", planted("empty", 6, action="drop"))
    examine(run, tmp_path / "issues.parquet", IssueSettings(), checks=PLAIN)
    labels = pq.read_table(tmp_path / "issues.parquet").column("suggested_label").to_pylist()
    assert (labels[5], labels[6], labels[4]) == ("2", None, None)


def test_a_better_label_outranks_harm_and_is_outranked_by_poison_and_copies(run, tmp_path, monkeypatch):
    def flagging(issue, *rows, **case):
        monkeypatch.setitem(checks.CHECKS, issue, planted(issue, *rows, **case))

    flagging("mislabelled", 4, 5, 6, 7, action="relabel", label="2")
    flagging("harmful", 5, 6, 8, action="drop")
    flagging("poisoned", 6, action="drop")
    flagging("near_duplicate", 7, action="drop")
    examine(run, tmp_path / "issues.parquet", IssueSettings(), checks=["mislabelled", *DROPPING])
    lines = pq.read_table(tmp_path / "issues.parquet").to_pylist()
    decided = {row: (lines[row]["action"], lines[row]["suggested_label"]) for row in range(4, 9)}
    assert decided == {
        4: ("relabel", "2"),
        5: ("relabel", "2"),
        6: ("drop", None),
        7: ("drop", None),
        8: ("drop", None),
    }
    assert lines[5]["suggestion"] == "relabel: mislabelled; harmful"


def test_blocks_of_lines_are_the_lines_of_one(run, tmp_path, two_checks, monkeypatch):
    from influence.issues import table

    examine(run, tmp_path / "whole.parquet", IssueSettings(), checks=PLAIN)
    monkeypatch.setattr(table, "BLOCK", 7)
    examine(run, tmp_path / "cut.parquet", IssueSettings(), checks=PLAIN)
    cut = list(read_issues(tmp_path / "cut.parquet"))
    assert [len(part) for part in cut] == [7, 7, 7, 7, 7, 5]
    assert pq.read_table(tmp_path / "cut.parquet") == pq.read_table(tmp_path / "whole.parquet")


def test_an_examination_that_was_interrupted_makes_only_the_checks_it_lacks(run, tmp_path, two_checks, monkeypatch):
    expected = tmp_path / "expected.parquet"
    examine(run, expected, IssueSettings(), checks=PLAIN)
    made, out = [], tmp_path / "issues.parquet"

    def counted(name, interrupted=False):
        inner = checks.CHECKS[name]

        def check(subject, settings):
            made.append(name)
            if interrupted:
                raise KeyboardInterrupt
            return inner.check(subject, settings)

        return Check(inner.about, inner.lacks, check)

    with monkeypatch.context() as patch:
        patch.setitem(checks.CHECKS, "empty", counted("empty"))
        patch.setitem(checks.CHECKS, "zero_gradient", counted("zero_gradient", interrupted=True))
        with pytest.raises(Incomplete, match="un the same command again"):
            examine(run, out, IssueSettings(), checks=PLAIN)
    assert made == ["empty", "zero_gradient"]
    assert not out.exists()
    monkeypatch.setitem(checks.CHECKS, "empty", counted("empty"))
    examine(run, out, IssueSettings(), checks=PLAIN)
    assert made == ["empty", "zero_gradient"]
    assert pq.read_table(out) == pq.read_table(expected)
    assert list(tmp_path.glob("*.parts")) == []


def test_other_thresholds_make_a_check_again(run, tmp_path, monkeypatch):
    asked = []

    class Thresholds(ZeroGradientSettings):
        above: float = 0.5

    def check(subject, settings):
        asked.append(settings.above)
        raise KeyboardInterrupt if len(asked) == 2 else QueryError("no more")

    monkeypatch.setitem(checks.CHECKS, "zero_gradient", planted("zero_gradient", 5))
    monkeypatch.setitem(checks.CHECKS, "empty", Check("", lambda subject: None, check))
    for above in (0.5, 0.6):
        settings = IssueSettings().model_copy(update={"empty": Thresholds(above=above)})
        with pytest.raises((Incomplete, QueryError)):
            examine(run, tmp_path / "issues.parquet", settings, checks=PLAIN)
    assert asked == [0.5, 0.6]


def test_two_examinations_into_one_file_are_refused(run, tmp_path):
    folder = tmp_path / "issues.parquet.parts"
    folder.mkdir()
    with lock_folder(folder), pytest.raises(RunLocked, match="is being written already"):
        examine(run, tmp_path / "issues.parquet", IssueSettings())
    assert folder.exists()


def test_a_check_that_does_not_apply_is_refused_with_those_that_do(run, tmp_path, monkeypatch):
    lacking = Check("", lambda subject: "It needs labels, and no row has one.", lambda subject, settings: None)
    monkeypatch.setitem(checks.CHECKS, "empty", lacking)
    with pytest.raises(QueryError, match=r"empty doesn't apply to .*: It needs labels.* Checks that do apply: .*zero"):
        examine(run, tmp_path / "issues.parquet", IssueSettings(), checks=["empty"])
    found = examine(run, tmp_path / "issues.parquet", IssueSettings(), checks=["zero_gradient"])
    assert [finding.issue for finding in found.findings] == ["zero_gradient"]
    assert list(tmp_path.glob("*.parts")) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"checks": ["spelling"]}, "There is no check 'spelling'; there are"),
        ({"out": "issues.csv"}, "its name must end in .parquet"),
        ({"out": "nowhere/issues.parquet"}, "The folder .* doesn't exist"),
    ],
)
def test_what_cannot_be_examined_is_refused(run, tmp_path, change, told):
    arguments = {"checks": PLAIN, "out": "issues.parquet", **change}
    with pytest.raises(QueryError, match=told):
        examine(run, tmp_path / arguments["out"], IssueSettings(), checks=arguments["checks"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("spelling.k=1", "--set spelling: there is no such setting; there are neighbours"),
        ("neighbours.l=1", "--set neighbours.l: there is no such setting; there are k"),
        ("neighbours.k=0", r"--set neighbours.k: Input should be greater than or equal to 1 \(found 0\)"),
        ("neighbours", "expected section.key=value"),
        ("neighbours.k=[", "not valid YAML"),
    ],
)
def test_settings_that_mean_nothing_are_refused(override, told):
    with pytest.raises(ConfigError, match=told):
        parse_settings([override])


def test_a_file_that_is_no_table_of_issues_is_refused(run, tmp_path):
    shard = next((run.path / "rows").glob("*.parquet"))
    shutil.copy(shard, tmp_path / "issues.parquet")
    (tmp_path / "text.parquet").write_text("issues")
    for name, told in (("issues", "no table of issues"), ("text", "can't be read as Parquet"), ("none", "no file")):
        with pytest.raises(QueryError, match=told):
            read_about(tmp_path / f"{name}.parquet")


def test_a_row_that_teaches_nothing_is_found(run):
    frame = run.issues(["zero_gradient", "empty"])
    assert frame.index[frame.is_zero_gradient].tolist() == [7]
    assert frame.action[7] == "drop"
    assert not frame.is_empty.any()
    assert frame.attrs["rules"]["zero_gradient"] == "Flagged at 1."


def test_the_verb_prints_rules_and_worst_rows_and_json(run, tmp_path, capsysbinary):
    asked = ["issues", str(run.path), "--out", str(tmp_path / "issues.parquet"), "--checks", "empty, zero_gradient"]
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 0
    said = " ".join(capsysbinary.readouterr().out.decode().split())
    assert "zero_gradient 1 2.5% row-7" in said
    assert "the higher a score, the stronger the case" in said
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--format", "json"])
    assert ended.value.code == 2
    assert b"exists already. Overwrite (--overwrite)" in capsysbinary.readouterr().err
    with pytest.raises(SystemExit):
        main([*asked, "--format", "json", "--overwrite"])
    found = json.loads(capsysbinary.readouterr().out)
    assert [(line["issue"], line["flagged"], line["worst"]) for line in found["issues"]] == [
        ("empty", 0, []),
        ("zero_gradient", 1, ["row-7"]),
    ]


@pytest.mark.parametrize(
    ("checks", "why"), [(["empty"], "--checks names only empty"), (["all"], "no unwanted output is given")]
)
def test_a_setting_of_a_check_that_is_not_made_is_refused(run, tmp_path, checks, why):
    with pytest.raises(QueryError, match=rf"--set poisoned\.… has no effect: .* is not made.*{why}"):
        examine(run, tmp_path / "issues.parquet", parse_settings(["poisoned.fewest=4"]), checks=checks)
    assert not (tmp_path / "issues.parquet").exists()
