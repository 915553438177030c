"""A model's own folder can't have code fetched and run: no kernel of the hub, and no weights from elsewhere."""

import json
import shutil

import pytest
import torch

from influence.errors import ModelError
from influence.model import kernels
from influence.model.folder import weight_files
from influence.model.kernels import check_kernels
from influence.model.load import ModelSettings, load_model


@pytest.fixture
def configured(tmp_path):
    """`configured(key=value)`: a folder whose configuration has these settings."""

    def write(**settings):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **settings}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"_attn_implementation": "kernels-community/flash-attn2"}, "_attn_implementation"),
        ({"attn_implementation": "someone/code@main:attention"}, "attn_implementation"),
        ({"_attn_implementation_internal": "paged|someone/code"}, "_attn_implementation_internal"),
        ({"attn_implementation": {"": "sdpa", "text_config": "someone/code"}}, "attn_implementation"),
        ({"text_config": {"_experts_implementation": "someone/code"}}, "text_config._experts_implementation"),
        ({"parts": [{"attn_implementation": "someone/code"}]}, "parts.attn_implementation"),
        ({"use_kernels": True}, "use_kernels"),
        ({"kernel_config": {"RMSNorm": "someone/code:RMSNorm"}}, "kernel_config"),
    ],
)
def test_a_configuration_that_names_a_kernel_of_the_hub_is_refused_with_its_key(configured, settings, key):
    with pytest.raises(ModelError, match=rf"config\.json sets {key} to .*a kernel whose code would be fetched and run"):
        check_kernels(configured(**settings), None)


@pytest.mark.parametrize(
    "settings",
    [
        {"_attn_implementation": "sdpa"},
        {"attn_implementation": None, "_name_or_path": "org/name", "use_kernels": False},
        {"attn_implementation": {"": "eager"}, "rope_scaling": {"type": "linear"}},
    ],
)
def test_a_configuration_that_names_what_transformers_has_is_let_through(configured, settings):
    check_kernels(configured(**settings), None)


def test_the_run_files_attention_takes_the_place_of_the_folders(configured):
    check_kernels(configured(attn_implementation="someone/code"), "sdpa")
    with pytest.raises(ModelError, match=r"model\.attention is 'someone/code', a kernel"):
        check_kernels(configured(), "someone/code")


@pytest.mark.parametrize(
    ("there", "refused"), [({"kernels"}, True), (set(), False), ({"kernels", "flash_attn"}, False)]
)
def test_a_library_that_is_not_here_is_not_fetched_from_the_hub_in_its_place(configured, monkeypatch, there, refused):
    monkeypatch.setattr(kernels, "find_spec", lambda name: name if name in there else None)
    folder = configured(attn_implementation="flash_attention_2")
    if refused:
        with pytest.raises(ModelError, match="attn_implementation to 'flash_attention_2'"):
            check_kernels(folder, None)
    else:
        check_kernels(folder, None)


def test_loading_a_model_asks(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("llama"), tmp_path / "llama")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_attn_implementation": "someone/code"}))
    with pytest.raises(ModelError, match="_attn_implementation to 'someone/code'"):
        load_model(ModelSettings(path=str(folder)), "cpu", torch.float32)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/model.safetensors", 7])
def test_an_index_that_lists_weights_of_another_folder_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="expected names of files beside it"):
        weight_files(tmp_path)
