"""What memory a worker needs is said before it starts, beside what it gets, and warned of where that is too little."""

import logging

import pytest

from influence.axes import ModuleColumns
from influence.stages.requirement import PROCESS, estimate_of, tell_memory, weights_on_disk, worker_bytes

WIDE = (ModuleColumns(name="layer", inputs=1000, outputs=1000, p=100, q=100, start=0, stop=10_000),)


@pytest.fixture
def told(caplog, configured):
    """`told(modules, **cluster)`: the lines of the log."""
    caplog.set_level(logging.INFO, "influence")

    def tell(modules, **cluster):
        caplog.clear()
        tell_memory(configured("store.rows_per_shard=null", cluster=cluster), 10_000_000, modules, 50)
        return caplog.messages

    return tell


def test_before_a_model_is_looked_at_its_weights_count(told, configured):
    (line,) = told(None, kind="slurm", job={"memory": "16GB"})
    assert "at least 0.60 GB" in line
    assert "16.00 GB to each of a job's workers (1)" in line


def test_rows_and_sums_come_on_top_and_too_small_a_job_is_warned_of(told, configured):
    config = configured("store.rows_per_shard=null")
    need = worker_bytes(estimate_of(config, 10_000_000, WIDE, weights_on_disk(config.model)))
    assert need > PROCESS + 16 * 10_000**2, "two sums over 10,000 columns in float64 are held while merging"
    line, warning = told(WIDE, kind="slurm", job={"memory": "1GB", "workers": 2})
    assert f"at least {need / 1e9:.2f} GB" in line
    assert "0.50 GB to each of a job's workers (2)" in line
    assert "raise cluster.job.memory" in warning
    assert len(told(WIDE, kind="slurm", job={"memory": "64GB"})) == 1


def test_local_workers_share_the_memory_of_the_machine(told, monkeypatch):
    monkeypatch.setattr("influence.stages.requirement.psutil.virtual_memory", lambda: type("M", (), {"total": 10**9}))
    line, warning = told(WIDE, workers=4, device="cpu")
    assert "This machine has 1.00 GB and 4 of them." in line
    assert "lower cluster.workers" in warning


@pytest.mark.parametrize("cluster", [{"kind": "pbs"}, {"kind": "address", "address": "tcp://host:1"}])
def test_where_nobody_knows_what_a_worker_has_nothing_is_warned_of(told, cluster):
    (line,) = told(WIDE, **cluster)
    assert "A worker needs at least" in line


def test_adapters_weigh_as_much_as_the_model_beneath_them_too(configured, model_folder):
    whole, adapted = (weights_on_disk(configured(family=family).model) for family in ("llama", "lora"))
    assert adapted > whole


def test_a_model_that_is_spread_over_gpus_is_told_beside_what_they_hold(caplog, configured, monkeypatch):
    caplog.set_level(logging.INFO, "influence")
    cuda = "influence.stages.requirement.torch.cuda"
    monkeypatch.setattr(f"{cuda}.is_available", lambda: True)
    monkeypatch.setattr(f"{cuda}.device_count", lambda: 2)
    monkeypatch.setattr(f"{cuda}.get_device_properties", lambda number: type("P", (), {"total_memory": 10_000})())
    spread = {"model.device_map=auto", "cluster.device=auto"}
    tell_memory(configured(*spread), 100, WIDE, 1)
    assert "over 2 GPUs with 0.00 GB together" in caplog.messages[0]
    assert caplog.messages[1].startswith("That is too little")
    caplog.clear()
    job = ("cluster.kind=slurm", "cluster.workers=null", "cluster.job.gpus=4", "cluster.device=cuda")
    tell_memory(configured(*spread, *job), 100, WIDE, 1)
    assert "over the job's GPUs (cluster.job.gpus: 4)" in caplog.messages[0]
