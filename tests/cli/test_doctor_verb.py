"""`influence doctor`: what is printed, and how it ends."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import influence.task as tasks


def test_a_healthy_run_passes_every_check_with_numbers_and_tolerances(cli, run_file):
    ended = cli("doctor", "-c", run_file())
    assert ended.code == 0, ended.err
    shown = " ".join(ended.out.split())
    assert "FAIL" not in shown
    for check in ("software", "device", "finite weights", "gradients", "padding", "batches", "ordinary backward"):
        assert f"{check} pass" in shown
    assert "at most 0.001" in shown


def test_a_run_directory_is_examined_with_its_own_settings_and_printed_as_json(cli, built):
    ended = cli("doctor", built, "--format", "json")
    checks = {check["name"]: check for check in json.loads(ended.out)}
    assert ended.code == 0
    assert checks["padding"]["value"] <= checks["padding"]["limit"]
    assert checks["padding"]["verdict"] == "pass"


def test_the_row_that_is_asked_for_is_shown_without_what_steers_a_terminal(cli, run_file, written):
    data = written({"text": "plain words"}, {"text": "red \u001b[31m words"})
    ended = cli("doctor", "-c", run_file(data=data), "--row", 1)
    assert ended.code == 0, ended.err
    assert "re⟦d \ufffd[31m words⟧" in ended.out
    assert "\x1b" not in ended.out
    assert "no row 7" in cli("doctor", "-c", run_file(data=data), "--row", 7).told


def test_a_failed_check_says_what_to_do_and_ends_with_3(cli, run_file, monkeypatch):
    loss = tasks.CausalLM.example_loss

    def mixed(self, model, batch):
        return loss(self, model, batch) / len(batch.input_ids)

    monkeypatch.setattr(tasks.CausalLM, "example_loss", mixed)
    ended = cli("doctor", "-c", run_file())
    assert ended.code == 3
    assert "batches FAIL" in " ".join(ended.out.split())
    assert "Set cluster.token_budget to 2" in " ".join(ended.out.split())
    assert "checks failed: batches" in ended.told
    assert "Traceback" not in ended.err


def test_bad_input_ends_with_2_after_what_was_found_so_far(cli, run_file, model_folder, tmp_path, written):
    model = shutil.copytree(model_folder("llama"), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    ended = cli("doctor", "-c", run_file(model=model))
    assert ended.code == 2
    assert "model.norm.weight" in ended.told
    assert "software" in ended.out
    ended = cli("doctor", "-c", run_file(data=written({"text": ""}, {"text": "a"})))
    assert ended.code == 2
    assert "has a scored token" in ended.told


@pytest.mark.parametrize("both", [False, True])
def test_either_a_run_or_a_run_file_is_examined(cli, built, run_file, both):
    ended = cli("doctor", *([built, "-c", run_file()] if both else []))
    assert ended.code == 2
    assert "influence doctor RUN, or influence doctor -c run.yaml" in ended.told


def test_a_directory_without_a_run_is_named(cli, tmp_path):
    ended = cli("doctor", tmp_path)
    assert ended.code == 2
    assert f"{tmp_path} holds no run" in ended.told
