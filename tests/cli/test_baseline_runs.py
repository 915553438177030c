"""The verbs on runs of `bm25` and `repsim`: every form of an answer says that it is no influence."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

import influence.api as runs
from influence.config import parse_config
from influence.recipes import SIGN_RULE, sign_rule
from tests.cli.conftest import ASKED, settings

BASELINES = ("bm25", "repsim")


@pytest.fixture
def built_by(cli, run_file, in_process, tmp_path):
    """`built_by("bm25")`: a run of that recipe, built through the command line."""

    def build(name):
        ended = cli("build", "-c", run_file(), "--set", f"recipe={name}", "--out", tmp_path / name)
        assert (ended.code, ended.out) == (0, ""), ended.err
        return tmp_path / name

    return build


@pytest.fixture(scope="module")
def words(model_folder, corpus_file, tmp_path_factory):
    """A run of bm25, not to be changed."""
    config = parse_config({**settings(model_folder("llama"), corpus_file), "recipe": "bm25"})
    return runs.build(config, tmp_path_factory.mktemp("words") / "run").path


@pytest.mark.parametrize("name", BASELINES)
def test_json_says_the_baselines_sentence_in_the_place_of_the_sign_rule(cli, built_by, name):
    run = built_by(name)
    answer = json.loads(cli("query", run, *ASKED, "-k", 3, "--format", "json").out)
    assert answer["sign"] == sign_rule(name)
    assert SIGN_RULE not in json.dumps(answer)
    assert "no unit" in answer["unit"]
    assert answer["opposing"] == []
    assert len(answer["promoting"]) == 3
    assert (answer["query"]["log_likelihood"] is None) == (name == "bm25")
    with runs.open(run) as opened:
        assert answer["promoting"][0]["score"] == pytest.approx(opened.score([asked()]).max(), abs=1e-3)


def asked():
    return dict(zip(("prompt", "completion"), ASKED[1::2], strict=True))


@pytest.mark.parametrize("name", BASELINES)
def test_every_other_form_says_it_too_and_names_no_side_opposing(cli, built_by, tmp_path, name):
    run = built_by(name)
    table = cli("query", run, *ASKED, "-k", 2)
    page = cli("query", run, *ASKED, "-k", 2, "--format", "html").out
    flat = cli("query", run, *ASKED, "-k", 2, "--format", "csv")
    assert cli("query", run, *ASKED, "-k", 2, "--out", tmp_path / "hits.parquet").code == 0
    for shown in (" ".join(table.out.split()), page, flat.told):
        assert sign_rule(name).split("'")[0] in shown
        assert "promotes it" not in shown
    for shown in (table.out, page):
        assert "Most alike" in shown
        assert "Opposing" not in shown
        assert ("log-likelihood" in shown) == (name == "repsim")
    rows = list(csv.DictReader(io.StringIO(flat.out)))
    assert {row["side"] for row in rows} == {"promoting"}
    schema = pq.read_schema(tmp_path / "hits.parquet")
    assert schema.metadata[b"sign"].decode() == sign_rule(name)


@pytest.mark.parametrize("name", BASELINES)
def test_status_and_doctor_know_a_baseline(cli, built_by, name):
    run = built_by(name)
    found = json.loads(cli("status", run, "--format", "json").out)
    assert (found["complete"], found["index"], found["curvature"]) == (True, "done", "not needed")
    assert found["recipe"].startswith(f"{name}: ")
    assert name in cli("status", run).out
    ended = cli("doctor", run, "--format", "json")
    checks = {check["name"]: check["verdict"] for check in json.loads(ended.out)}
    assert ended.code == 0, ended.err
    assert {"pass"} == set(checks.values()) - {"note"}
    assert ("words" in checks, "hidden states" in checks) == (name == "bm25", name == "repsim")
    assert "gradients" not in checks
    assert cli("status", run, "--spectra").code == 2


@pytest.mark.parametrize("asked", ["--self", "--queries"])
@pytest.mark.parametrize("cluster", ["local", "slurm", "tcp://127.0.0.1:9"])
def test_a_scan_of_words_is_refused_before_any_cluster_is_connected(cli, words, tmp_path, asked, cluster):
    (tmp_path / "q.jsonl").write_text('{"text": "the river"}\n')
    flags = [asked] if asked == "--self" else [asked, tmp_path / "q.jsonl"]
    ended = cli("score", words, *flags, "--cluster", cluster, "--out", tmp_path / "s.parquet")
    assert ended.code == 2
    assert "bm25 keeps words and no rows to scan" in ended.told
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("name", BASELINES)
def test_plan_counts_a_baselines_columns_and_workers(cli, run_file, in_process, name):
    ended = cli("plan", "-c", run_file(), "--set", f"recipe={name}", "--format", "json")
    found = json.loads(ended.out)
    assert ended.code == 0, ended.err
    assert (found["dims"], found["modules"]) == ((0, []) if name == "bm25" else (24, ["last hidden state"]))
    assert found["disk_index"] > 0
    assert found["hours"] > 0
    assert (found["hours_by_workers"].keys() == {"1"}) == (name == "bm25")
    shown = cli("plan", "-c", run_file(), "--set", f"recipe={name}").out
    assert ("words a row" in shown) == (name == "bm25")


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("flags", [("--exact",), ("--contrast", " a queen")])
def test_what_it_cannot_be_asked_ends_with_exit_code_2_and_no_traceback(cli, built_by, name, flags):
    ended = cli("query", built_by(name), *ASKED, *flags)
    assert (ended.code, ended.out) == (2, "")
    assert f"the baseline {name}" in ended.told
    assert "Traceback" not in ended.err
