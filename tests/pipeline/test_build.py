"""A build does what is missing, refuses what is another's, and leaves nothing half done."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from index.errors import FaissMissing
from influence.artifacts.lock import lock_folder
from influence.capture.rows import RowCapture
from influence.config import load_config
from influence.errors import FingerprintMismatch, Incomplete, InfluenceError, ModelError, RunLocked
from influence.stages import build as build_module
from influence.stages.build import build_run


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "x"


def test_the_saved_configuration_builds_the_same_run(configured, in_process, run_dir, tmp_path, contents):
    config = configured("data.limit=20")
    auto = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "auto"})})
    build_run(auto, run_dir)
    saved = load_config(run_dir / "config.yaml")
    assert (saved.model.dtype, saved.cluster.device, saved.store.rows_per_shard) == ("float32", "cpu", 8)
    build_run(saved, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(run_dir)


def test_a_finished_run_starts_no_cluster(configured, in_process, run_dir, monkeypatch, contents):
    build_run(configured("data.limit=20"), run_dir)
    before = contents(run_dir)
    monkeypatch.setattr(build_module, "connect", None)
    steps = []
    build_run(configured("data.limit=20"), run_dir, steps.append)
    assert contents(run_dir) == before
    assert [(step.stage, step.done, step.total) for step in steps] == [
        ("capture", 3, 3),
        ("curvature", 4, 4),
        ("index", 1, 1),
    ]


def test_no_more_workers_are_started_than_there_are_shards(configured, in_process, run_dir, written, monkeypatch):
    data = written(*[{"text": "A list."}] * 150)
    config = configured("store.rows_per_shard=100", "recipe.name=graddot", "index.kind=exact", data=data)
    caps = []

    @contextmanager
    def connect(settings, most, run_dir):
        caps.append(most)
        yield in_process

    monkeypatch.setattr(build_module, "connect", connect)
    build_run(config, run_dir)
    shards = len(list((run_dir / "rows").glob("*.safetensors")))
    (run_dir / "rows" / "shard-00001.json").unlink()
    build_run(config, run_dir)
    assert caps == [shards, shards] == [3, 3]


def test_only_what_is_missing_is_computed_again(configured, in_process, run_dir, monkeypatch, contents):
    build_run(configured(), run_dir)
    before = contents(run_dir)
    (run_dir / "rows" / "shard-00002.json").unlink()
    (run_dir / "rows" / "shard-00003.safetensors").write_bytes(b"cut short")
    (run_dir / "curvature" / "fisher.safetensors").unlink()
    (run_dir / "index" / "index.json").write_text("{")
    captured, capture = [], RowCapture.run
    monkeypatch.setattr(
        RowCapture, "run", lambda stage, task, session: captured.append(task.number) or capture(stage, task, session)
    )
    build_run(configured(), run_dir)
    assert sorted(captured) == [2, 3]
    assert contents(run_dir) == before


def test_another_damping_or_recipe_keeps_the_rows(configured, in_process, run_dir, monkeypatch, contents):
    build_run(configured(), run_dir)
    rows = {name: data for name, data in contents(run_dir).items() if name.startswith("rows")}
    index = (run_dir / "index" / "index.json").read_text()
    monkeypatch.setattr(build_module, "connect", None)
    build_run(configured("recipe.damping=0.5"), run_dir)
    assert (run_dir / "index" / "index.json").read_text() == index
    assert load_config(run_dir / "config.yaml").recipe.curvature.damping.value == 0.5
    build_run(configured("recipe.name=gradcos"), run_dir)
    assert (run_dir / "index" / "index.json").read_text() != index
    assert {name: data for name, data in contents(run_dir).items() if name.startswith("rows")} == rows


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipe.seed=7", "recipe.projection.seed is 0 there and 7 in this run"),
        ("data.max_tokens=32", "data.max_tokens is 64 there and 32 in this run"),
        ("data.limit=10", "data.rows is 16 there and 10 in this run"),
        ("model.dtype=bfloat16", "model.dtype is 'float32' there and 'bfloat16' in this run"),
        ("store.rows_per_shard=4", "store.rows_per_shard is 8 there and 4 in this run"),
    ],
)
def test_a_directory_of_another_run_is_refused_by_setting_and_both_values(
    configured, in_process, tmp_path, monkeypatch, override, told, contents
):
    run_dir = tmp_path / "run"
    build_run(configured("data.limit=16", "recipe.name=graddot", "index.kind=exact"), run_dir)
    before = contents(run_dir)
    monkeypatch.setattr(build_module, "connect", None)
    with pytest.raises(FingerprintMismatch) as caught:
        build_run(configured("data.limit=16", "recipe.name=graddot", "index.kind=exact", override), run_dir)
    assert told in str(caught.value)
    assert contents(run_dir) == before


def test_two_builds_into_one_directory_are_told_apart(configured, in_process, run_dir):
    with lock_folder(run_dir), pytest.raises(RunLocked, match=r"is being written by process \d+"):
        build_run(configured(), run_dir)


def test_a_model_that_cannot_be_used_leaves_no_directory_behind(configured, in_process, tmp_path, run_dir):
    with pytest.raises(InfluenceError):
        build_run(configured(f"model.path={tmp_path / 'nowhere'}", f"model.tokeniser={tmp_path}"), run_dir)
    with pytest.raises(ModelError, match=r"nosuchlayer"):
        build_run(configured("model.layers.include=[nosuchlayer*]"), run_dir)
    assert not (tmp_path / "runs").exists()


def test_a_missing_faiss_is_told_before_any_row_is_captured(configured, in_process, tmp_path, run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(FaissMissing, match=r"influence\[cpu\]"):
        build_run(configured(), run_dir)
    assert not (tmp_path / "runs").exists()
    build_run(configured("index.kind=exact"), run_dir)
    assert not (run_dir / "index").exists()


def test_an_error_in_a_shard_reaches_the_caller_and_leaves_the_other_shards(configured, in_process, run_dir, written):
    records = [{"text": "A list keeps its items in order."}] * 20
    data = written(*records, {"text": "word " * 900}, *records[:4])
    with pytest.raises(InfluenceError, match=r"^shard-00002 \(rows 16 to 23\): Row 20 "):
        build_run(configured("data.max_tokens=4096", family="gpt2", data=data), run_dir)
    assert not (run_dir / "rows" / "shard-00002.json").exists()


def test_a_data_set_with_nothing_to_score_is_refused(configured, in_process, run_dir, written):
    with pytest.raises(InfluenceError, match=r"None of 3 rows .* has a scored token"):
        build_run(configured(data=written({"text": ""}, {"text": "a"}, {"text": ""})), run_dir)


def test_a_relative_folder_is_the_one_it_names_when_the_build_starts(
    configured, in_process, tmp_path, monkeypatch, contents
):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    # Workers of a scheduler may have been started in any folder: every task runs in another one here.
    build_run(configured("data.limit=9"), Path("runs/x"), lambda step: os.chdir(elsewhere))
    assert not list(elsewhere.iterdir())
    build_run(configured("data.limit=9"), home / "absolute")
    assert contents(home / "runs/x") == contents(home / "absolute")


def test_an_interrupt_says_how_much_stands(configured, in_process, run_dir):
    def interrupt(step):
        if step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Incomplete, match=r"Interrupted\. [2345] of 5 shards stand in .* Run the same build again"):
        build_run(configured(), run_dir, interrupt)
    build_run(configured(), run_dir)


def test_rows_without_a_scored_token_are_reported(configured, in_process, run_dir, written, caplog):
    texts = ["A list.", "", "The river was named."] * 8
    build_run(configured(data=written(*({"text": text} for text in texts))), run_dir)
    assert "8 of 24 rows have a zero gradient" in caplog.text
    assert "rows 1, 4, 7, 10" in caplog.text
    assert json.loads((run_dir / "rows" / "shard-00000.json").read_text())["zero_rows"] == [1, 4, 7]
