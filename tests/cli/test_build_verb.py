"""`influence build` on all that can be wrong with data, model, settings and disk: exit code, message, no litter."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from influence.artifacts.lock import lock_folder
from influence.cli.cluster import cluster_settings
from influence.errors import ConfigError
from tests.cli.conftest import ASKED, clean, until

pytestmark = pytest.mark.usefixtures("in_process")

GOOD = {"text": "A list keeps its items in order."}


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "x"


def test_a_build_prints_nothing_on_standard_output_and_says_what_to_ask_next(cli, run_file, run_dir):
    ended = cli("build", "-c", run_file(), "--out", run_dir, "--set", "data.limit=12", "--workers", 1)
    assert (ended.code, ended.out) == (0, "")
    assert "12 rows of 224 columns" in ended.told
    assert f"influence query {run_dir}" in ended.told
    again = cli("build", "-c", run_file(), "--out", run_dir, "--set", "data.limit=12", "--cluster", "local")
    assert again.code == 0


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([b""], "rows.jsonl is empty"),
        ([GOOD, b'{"text": "caf\xe9"}\n'], "rows.jsonl, line 2: byte 14 of the line, 0xe9, is not valid UTF-8"),
        ([GOOD, GOOD, b'{"text": "a"\n'], "rows.jsonl, line 3: malformed JSON"),
        ([GOOD, b"[1]\n"], "rows.jsonl, line 2: found a JSON list, expected one JSON object a line"),
        ([{"body": "a"}], "has no column to score. Columns found: 'body'"),
        ([GOOD, {"text": 3}], "rows.jsonl, line 2: 'text' is int 3, expected a string"),
        (
            [{**GOOD, "id": "a"}, {**GOOD, "id": "b"}, {**GOOD, "id": "a"}],
            "rows 0 and 2 (counted from 0) were both given the id 'a'",
        ),
        ([{"text": ""}, {"text": "a"}], "None of 2 rows spread over"),
    ],
)
def test_data_that_cannot_be_used_is_named_by_file_and_line(cli, run_file, run_dir, written, lines, told):
    ended = cli("build", "-c", run_file(data=written(*lines)), "--out", run_dir)
    assert ended.code == 2
    assert told in ended.told
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert not run_dir.parent.exists()


def test_a_data_file_that_is_not_there_is_named(cli, run_file, run_dir, tmp_path):
    ended = cli("build", "-c", run_file(data=tmp_path / "nowhere.jsonl"), "--out", run_dir)
    assert ended.code == 2
    assert "There is nothing at" in ended.told
    assert "nowhere.jsonl" in ended.told


def test_empty_one_token_and_endless_texts_are_rows_like_any_other(cli, run_file, run_dir, written):
    data = written(GOOD, {"text": ""}, {"text": "a"}, {"text": "word " * 100_000}, GOOD)
    ended = cli("build", "-c", run_file(data=data), "--out", run_dir)
    assert ended.code == 0, ended.err
    assert "warning: 2 of 5 rows have a zero gradient" in ended.told
    assert "rows 1, 2." in ended.told
    found = json.loads(cli("status", run_dir, "--format", "json").out)
    assert (found["rows_done"], found["zero_rows"], found["complete"]) == (5, 2, True)


@pytest.mark.parametrize("missing", ["folder", "tokeniser", "weights"])
def test_a_model_folder_that_lacks_something_is_named(cli, run_file, run_dir, model_folder, tmp_path, missing):
    model = tmp_path / "model"
    if missing != "folder":
        shutil.copytree(model_folder("llama"), model)
    gone = {"tokeniser": ("tokenizer.json", "tokenizer_config.json"), "weights": ("model.safetensors",)}
    for name in gone.get(missing, ()):
        (model / name).unlink()
    ended = cli("build", "-c", run_file(model=model), "--out", run_dir)
    assert ended.code == 2
    assert str(model) in ended.told
    assert {"folder": str(model), "tokeniser": "no tokeniser", "weights": "weights"}[missing] in ended.told
    assert "Traceback" not in ended.err
    assert not run_dir.parent.exists()


def test_weights_that_are_not_finite_are_named(cli, run_file, run_dir, model_folder, tmp_path):
    model = shutil.copytree(model_folder("llama"), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    ended = cli("build", "-c", run_file(model=model), "--out", run_dir)
    assert ended.code == 2
    assert "model.layers.1.mlp.up_proj.weight" in ended.told
    assert "Traceback" not in ended.err
    assert not run_dir.parent.exists()


def test_an_unknown_key_is_named_with_its_file_and_line_and_what_is_allowed(cli, run_file, run_dir):
    path = run_file()
    path.write_text(path.read_text().replace("max_tokens", "max_token"))
    ended = cli("build", "-c", path, "--out", run_dir)
    assert ended.code == 2
    assert "run.yaml:" in ended.told
    assert "unknown key data.max_token" in ended.told
    assert "Did you mean max_tokens?" in ended.told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.max_token=3", "--set: unknown key data.max_token"),
        ("data.max_tokens=many", "--set: data.max_tokens"),
        ("max_tokens", "expected key=value with a dotted key"),
        ("recipe.name=lograh", "There is no recipe 'lograh'"),
        ("model.layers.include=[nosuchlayer]", "'nosuchlayer', which matches no layer"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(cli, run_file, run_dir, change, told):
    ended = cli("build", "-c", run_file(), "--out", run_dir, "--set", change)
    assert ended.code == 2
    assert told in ended.told
    assert "Traceback" not in ended.err
    assert not run_dir.parent.exists()


def test_a_run_file_that_is_not_there_is_named(cli, run_dir, tmp_path):
    ended = cli("build", "-c", tmp_path / "no.yaml", "--out", run_dir)
    assert ended.code == 2
    assert "There is no run file" in ended.told


def test_a_directory_that_holds_another_run_is_refused_with_both_values(cli, run_file, run_copy):
    ended = cli("build", "-c", run_file(), "--out", run_copy, "--set", "data.max_tokens=32")
    assert ended.code == 2
    assert "data.max_tokens is 64 there and 32 in this run" in ended.told


def test_a_second_build_into_a_directory_that_is_being_written_is_refused(cli, run_file, run_dir):
    with lock_folder(run_dir):
        ended = cli("build", "-c", run_file(), "--out", run_dir)
    assert ended.code == 2
    assert "is being written by process" in ended.told
    assert "Traceback" not in ended.err


def test_a_full_disk_ends_with_4_leaves_nothing_half_written_and_is_resumed(cli, run_file, small_disk):
    folder, make_room = small_disk
    sections = {"recipe": {"name": "graddot", "projection": {"p": 16, "q": 16}}, "store": {"rows_per_shard": 4}}
    command = ("build", "-c", run_file(**sections), "--out", folder / "run")
    ended = cli(*command)
    assert ended.code == 4, ended.err
    assert "is full" in ended.told
    assert "run the same command again" in ended.told
    assert "Traceback" not in ended.err
    # This cluster's threads outlive the build: one may still be about to find the disk full.
    until(lambda: clean(folder))
    make_room()
    assert cli(*command).code == 0
    assert clean(folder)


def test_a_truncated_shard_is_named_by_a_query_and_made_again_by_the_build(cli, run_file, run_copy):
    shard = run_copy / "rows" / "shard-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    ended = cli("query", run_copy, *ASKED, "-k", 40)
    assert ended.code == 2
    assert str(shard) in ended.told
    assert "truncated" in ended.told
    assert ended.out == ""
    assert cli("build", "-c", run_copy / "config.yaml", "--out", run_copy).code == 0
    assert shard.read_bytes() == whole
    assert cli("query", run_copy, *ASKED, "-k", 40).code == 0
    assert clean(run_copy)


@pytest.mark.parametrize("damaged", ["rows/shard-00001.safetensors", "rows/shard-00001.parquet"])
def test_a_flipped_byte_is_named_with_what_to_do_and_doing_it_helps(cli, run_copy, damaged):
    path = run_copy / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    ended = cli("query", run_copy, *ASKED, "-k", 40)
    assert ended.code == 2
    assert f"{path} has sha256" in ended.told
    assert "shard-00001.json" in ended.told
    path.with_suffix(".json").unlink()
    unfinished = cli("query", run_copy, *ASKED)
    assert unfinished.code == 4
    assert "Run the same build again" in unfinished.told
    assert cli("build", "-c", run_copy / "config.yaml", "--out", run_copy).code == 0
    assert path.read_bytes() == whole


def test_cluster_flags_become_settings():
    assert cluster_settings(None, None) == []
    assert cluster_settings("local", 3) == [
        *("cluster.kind=local", "cluster.address=null", "cluster.tls=null", "cluster.adapt=null", "cluster.workers=3")
    ]
    assert cluster_settings("tcp://here:8786", None) == ["cluster.kind=address", "cluster.address=tcp://here:8786"]
    assert cluster_settings("slurm", None) == ["cluster.kind=slurm", "cluster.address=null", "cluster.tls=null"]
    with pytest.raises(ConfigError, match=r"'slum': expected local, cuda, slurm, .*, or a scheduler's address"):
        cluster_settings("slum", None)
    with pytest.raises(ConfigError, match=r"--workers 3 .* tcp://here:8786"):
        cluster_settings("tcp://here:8786", 3)
