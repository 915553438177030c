"""`influence status`: how far a run is, once or until it is done."""

import json
import os
import shutil

import pytest

import influence.api as runs
import influence.cli.status as verb
from influence.artifacts.lock import lock_folder


def test_a_finished_run_is_told_as_a_table_or_json(cli, built):
    ended = cli("status", built)
    assert ended.code == 0
    assert "complete" in ended.out
    assert "40 of 40 captured (100% of 5 shards)" in ended.out
    found = json.loads(cli("status", built, "--format", "json").out)
    assert found == json.loads(json.dumps(runs.status(built)))
    assert found["coverage"]["body_share"] > 0.9 > found["coverage"]["share"]
    assert found["coverage"]["summary"] in " ".join(ended.out.split())


def test_an_unfinished_run_says_what_is_missing_and_what_to_do(cli, run_copy):
    (run_copy / "rows" / "shard-00002.json").unlink()
    (run_copy / "index" / "index.json").unlink()
    ended = cli("status", run_copy)
    assert ended.code == 0
    assert "incomplete: run the same build again" in ended.out
    assert "32 of 40 captured (80% of 5 shards)" in ended.out
    found = json.loads(cli("status", run_copy, "--format", "json").out)
    assert (found["complete"], found["shards_done"], found["index"]) == (False, 4, "missing")


def test_spectra_name_every_module_and_what_lies_under_the_damping(cli, built):
    ended = cli("status", built, "--spectra")
    assert ended.code == 0
    assert "Fisher" in ended.out
    assert "of the trace under it" in ended.out
    found = json.loads(cli("status", built, "--spectra", "--format", "json").out)["Fisher"]
    assert [spectrum["module"] for spectrum in found] == [module.name for module in runs.open(built).manifest.modules]
    assert all(
        0 <= spectrum["trace_share_under_damping"] <= spectrum["directions_under_damping"] <= 1 for spectrum in found
    )
    assert all(spectrum["dimension"] > 0 for spectrum in found)


def test_spectra_of_a_whitened_run_without_exact_scores_are_those_of_the_factors_folded_in(
    cli, run_file, in_process, tmp_path
):
    recipe = {"projection": {"p": 2, "q": 3, "rows": "whitened", "damping": 0.5}, "factors": {"rows": 12}}
    assert cli("build", "-c", run_file(recipe=recipe), "--out", tmp_path / "run").code == 0
    found = json.loads(cli("status", tmp_path / "run", "--spectra", "--format", "json").out)
    assert list(found) == ["A (inputs)", "S (outputs)"]
    modules = [module.name for module in runs.open(tmp_path / "run").manifest.modules]
    for spectra in found.values():
        assert [spectrum["module"] for spectrum in spectra] == modules
        assert all(spectrum["damping"] == 0.5 * spectrum["mean"] > 0 for spectrum in spectra)
    assert "A (inputs)" in cli("status", tmp_path / "run", "--spectra").out


def test_a_directory_without_a_run_is_named(cli, tmp_path):
    ended = cli("status", tmp_path, "--watch")
    assert ended.code == 2
    assert "holds no run" in ended.told


@pytest.mark.parametrize("form", ["json", "table"])
def test_watching_tells_every_change_and_ends_with_the_run(cli, run_copy, monkeypatch, form):
    record = run_copy / "rows" / "shard-00002.json"
    content = record.read_bytes()
    record.unlink()
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            record.write_bytes(content)

    monkeypatch.setattr(verb.time, "sleep", sleep)
    ended = cli("status", run_copy, "--watch", "--format", form)
    assert ended.code == 0
    assert slept == [verb.INTERVAL] * 2
    if form == "json":
        assert [json.loads(line)["shards_done"] for line in ended.out.splitlines()] == [4, 5]
    else:
        assert ended.out.count("captured") == 2


def test_watching_in_a_terminal_redraws_and_ctrl_c_ends_it(cli, run_copy, monkeypatch, terminal):
    (run_copy / "index" / "index.json").unlink()

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb.time, "sleep", interrupted)
    terminal()
    ended = cli("status", run_copy, "--watch")
    assert ended.code == 0
    assert "incomplete" in ended.out
    assert "Traceback" not in ended.err


def test_a_build_that_has_only_begun_is_told_from_no_run(cli, tmp_path):
    with lock_folder(tmp_path / "run"):
        ended = cli("status", tmp_path / "run")
    assert ended.code == 4
    assert f"is being begun by process {os.getpid()}" in ended.told


def test_a_build_whose_manifest_stands_alone_is_told_from_one_that_stopped(cli, run_copy):
    (run_copy / "config.yaml").unlink()
    with lock_folder(run_copy):
        ended = cli("status", run_copy)
    assert ended.code == 4
    assert f"is being begun by process {os.getpid()}" in ended.told
    ended = cli("status", run_copy)
    assert ended.code == 4
    assert "has no config.yaml: its build stopped early. Build it again." in ended.told


def test_watching_says_once_what_it_waits_for_until_the_build_has_begun(cli, built, tmp_path, monkeypatch):
    run = tmp_path / "run"
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            shutil.copytree(built, run, dirs_exist_ok=True)

    with lock_folder(run):
        monkeypatch.setattr(verb.time, "sleep", sleep)
        ended = cli("status", run, "--watch", "--format", "json")
    assert ended.code == 0
    assert json.loads(ended.out)["complete"]
    assert slept == [verb.INTERVAL] * 3
    assert ended.told.count(f"Waiting: {run} is being begun by process {os.getpid()}") == 1


@pytest.mark.parametrize("form", ["json", "table"])
def test_ctrl_c_ends_the_waiting_for_a_build_that_has_only_begun(cli, tmp_path, monkeypatch, form):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb.time, "sleep", interrupted)
    with lock_folder(tmp_path / "run"):
        ended = cli("status", tmp_path / "run", "--watch", "--format", form)
    assert ended.code == 0
    assert ended.out == ""
    assert "Waiting: " in ended.told
    assert "Interrupted" not in ended.told
