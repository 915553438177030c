"""A model whose layers are on several devices. Here they are all the CPU: no test of this file has run on a GPU."""

import accelerate
import pytest
import torch
import transformers
from pydantic import ValidationError

from influence.config import parse_config
from influence.errors import ConfigError, ModelError
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import tracked_layers
from influence.model.load import ModelSettings, load_model
from influence.model.placement import resolve_device_map
from influence.task import CausalLM

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def loaded(folder, device_map=None):
    return load_model(ModelSettings(path=str(folder), device_map=device_map), "cpu", torch.float32)


def rows_of(model, batch):
    layers = tracked_layers(model)
    with Capture(model, layers, Projection(ProjectionSettings(p=2, q=3))) as capture:
        return capture(CausalLM().example_loss, batch)


def module_by_module(model):
    """A map that names every module with weights of its own."""
    return {
        name: "cpu"
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "lora"])
@pytest.mark.parametrize("spread", ["auto", "balanced", "sequential", {"": "cpu"}])
def test_rows_of_a_spread_model_are_those_of_the_plain_one_to_the_bit(model_folder, ragged_batch, family, spread):
    ours = rows_of(loaded(model_folder(family), spread), ragged_batch)
    theirs = rows_of(loaded(model_folder(family)), ragged_batch)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_map_of_every_module_changes_no_bit_of_a_row(model_folder, ragged_batch, family):
    plain = loaded(model_folder(family))
    spread = loaded(model_folder(family), module_by_module(plain))
    assert all(map(torch.equal, rows_of(spread, ragged_batch), rows_of(plain, ragged_batch)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_accelerates_hooks_on_every_module_change_no_bit_of_a_row(model_folder, ragged_batch, family):
    plain, spread = loaded(model_folder(family)), loaded(model_folder(family))
    accelerate.dispatch_model(spread, module_by_module(spread), force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in spread.modules())
    assert all(map(torch.equal, rows_of(spread, ragged_batch), rows_of(plain, ragged_batch)))


def test_weights_on_the_disk_are_refused_by_name():
    with pytest.raises(ValidationError, match="'disk' is no place for a layer"):
        ModelSettings(path="m", device_map={"model": 0, "lm_head": "disk"})
    with pytest.raises(ValidationError, match="'meta' is no place"):
        ModelSettings(path="m", device_map={"": "meta"})


def test_a_weight_that_found_no_place_on_a_gpu_is_refused(model_folder, monkeypatch):
    # As accelerate leaves a model that doesn't fit: what it would load for one layer at a time is on no device.
    def left_out(*args, **kwargs):
        model, report = load(*args, **kwargs)
        model.lm_head.to("meta")
        return model, report

    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", left_out)
    with pytest.raises(ModelError, match=r"lm_head\.weight, found no place on the cpu devices.*more or larger GPUs"):
        loaded(model_folder("llama"), "auto")


def test_a_map_of_modules_that_are_not_there_is_refused(model_folder):
    with pytest.raises(ModelError, match=r"names model\.layer\.0, and LlamaForCausalLM has no such module"):
        loaded(model_folder("llama"), {"": "cpu", "model.layer.0": "cpu"})


def test_a_map_goes_to_transformers_where_gpus_compute_and_names_none_where_the_cpu_does():
    assert resolve_device_map(None, CUDA) == {"": CUDA}
    assert resolve_device_map("balanced", CUDA) == "balanced"
    assert resolve_device_map({"": 0, "lm_head": "cuda:1"}, CUDA) == {"": 0, "lm_head": "cuda:1"}
    assert resolve_device_map(None, CPU) is resolve_device_map("auto", CPU) is None
    with pytest.raises(ModelError, match=r"puts lm_head on cuda:1, and the CPU computes here"):
        resolve_device_map({"": "cpu", "lm_head": "cuda:1"}, CPU)


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        ({}, r"cluster has workers None: set cluster\.kind to local and cluster\.workers to 1"),
        ({"workers": 2}, "workers 2"),
        ({"adapt": {"max": 2}}, "has adapt"),
        ({"kind": "cuda", "workers": 1}, "has kind cuda"),
        ({"kind": "slurm", "job": {"workers": 2}}, r"set cluster\.job\.workers to 1"),
    ],
)
def test_several_workers_that_would_share_the_gpus_are_refused(cluster, told):
    found = {"model": {"path": "m", "device_map": "auto"}, "data": {"path": "d.jsonl"}, "cluster": cluster}
    with pytest.raises(ConfigError, match=told):
        parse_config(found)


def test_a_job_has_several_gpus_only_for_a_model_that_is_spread_over_them():
    found = {"model": {"path": "m"}, "data": {"path": "d.jsonl"}, "cluster": {"kind": "slurm", "job": {"gpus": 4}}}
    with pytest.raises(ConfigError, match=r"job\.gpus is 4, and a worker computes on one GPU"):
        parse_config(found)
    assert parse_config(found, ["model.device_map=auto"]).cluster.job.gpus == 4
