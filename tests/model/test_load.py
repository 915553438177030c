"""Loading: every family comes back whole, and whatever is wrong with a folder is said in one sentence."""

import hashlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from influence.errors import MissingExtra, ModelError
from influence.model.load import (
    ModelSettings,
    load_model,
    load_tokeniser,
    model_digest,
    pad_id,
    resolve_dtype,
    tokeniser_digest,
)

CAUSAL = ("gpt2", "gptneox", "llama", "qwen2", "qwen3", "lora")


def settings_for(folder, family="llama", **changed):
    kind = "sequence_classification" if family == "bert" else "causal_lm"
    return ModelSettings(**{"path": str(folder), "kind": kind, **changed})


def load(folder, family="llama", dtype=torch.float32, **changed):
    return load_model(settings_for(folder, family, **changed), "cpu", dtype)


@pytest.fixture
def llama(model_folder, tmp_path) -> Path:
    """A Llama folder that a test may damage."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "llama"))


@pytest.fixture
def lora(model_folder, tmp_path) -> Path:
    """An adapter folder that a test may damage; the model underneath is shared."""
    return Path(shutil.copytree(model_folder("lora"), tmp_path / "lora"))


def rewrite(folder, change, name="model.safetensors"):
    """Change a checkpoint's weights, a dict of tensors, in place."""
    weights = load_file(folder / name)
    change(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})


def reconfigure(folder, name="config.json", **changed):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changed}))


@pytest.mark.parametrize("family", [*CAUSAL, "bert"])
def test_a_saved_model_comes_back_frozen_in_eval_mode_with_the_same_logits(
    family, tiny_model, model_folder, tokenizer, capfd, caplog
):
    inputs = torch.tensor([tokenizer("The river was named").input_ids])
    expected = tiny_model(family, torch.float32)(input_ids=inputs).logits
    folder = model_folder(family)
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        model = load(folder, family)
    printed = capfd.readouterr()
    torch.testing.assert_close(model(input_ids=inputs).logits, expected)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert printed.out == ""
    assert printed.err == ""
    assert caplog.messages == []


def test_loading_leaves_the_verbosity_and_progress_bars_of_transformers_as_they_were(llama):
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_info()
    try:
        load(llama)
        assert transformers.logging.get_verbosity() == logging.INFO
        assert transformers.logging.is_progress_bar_enabled()
    finally:
        transformers.logging.set_verbosity(level)


@pytest.mark.parametrize("family", ["llama", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_comes_in_the_dtype_asked_for(family, dtype, model_folder):
    model = load(model_folder(family), family, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize(("probe", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_dtype_auto_is_bfloat16_only_where_the_processor_multiplies_it(probe, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: probe)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: probe)
    assert resolve_dtype(ModelSettings(path="m"), "cpu") == expected


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)])
def test_dtype_auto_on_a_gpu_follows_its_compute_capability(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype(ModelSettings(path="m"), "cuda:0") == expected


def test_a_dtype_that_is_set_is_never_changed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert resolve_dtype(ModelSettings(path="m", dtype="bfloat16"), "cuda:0") == torch.bfloat16
    assert resolve_dtype(ModelSettings(path="m", dtype="float16"), "cpu") == torch.float16


def test_an_unknown_setting_is_an_error():
    with pytest.raises(ValidationError, match="dtyp"):
        ModelSettings.model_validate({"path": "m", "dtyp": "float32"})


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path is .*/nowhere: there is no such folder"):
        load(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_is_named(llama):
    with pytest.raises(ModelError, match=r"the file .*model\.safetensors; expected the folder"):
        load(llama / "model.safetensors")


def test_a_hub_name_that_is_not_in_the_cache_says_what_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"'someone/some-model': there is no such folder here .* at revision 'v2'"):
        load("someone/some-model", revision="v2")


def test_a_folder_without_a_configuration_lists_what_it_holds(tmp_path):
    (tmp_path / "notes.md").touch()
    with pytest.raises(ModelError, match=r"holds no config\.json, so it is no model folder\. It holds notes\.md"):
        load(tmp_path)


def test_a_training_directory_points_at_its_checkpoints(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(ModelError, match=r"training checkpoints \(checkpoint-500/\): name one"):
        load(tmp_path)


def test_a_folder_without_weights_says_so(llama):
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no weights: expected model\.safetensors"):
        load(llama)


@pytest.mark.parametrize("family", ["llama", "lora"])
def test_pickled_weights_are_never_opened_and_the_way_out_is_named(family, request, monkeypatch):
    folder = request.getfixturevalue(family)
    safe = folder / ("adapter_model.safetensors" if family == "lora" else "model.safetensors")
    safe.with_suffix(".bin").write_bytes(b"not even a pickle")
    safe.unlink()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    with pytest.raises(ModelError, match=r"only as pickles \(\w+\.bin\).*safe_serialization=True"):
        load(folder)


def test_a_truncated_weight_file_is_named(llama):
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors can't be read as safetensors .*copied only in part"):
        load(llama)


def test_a_shard_that_the_index_lists_and_the_folder_lacks_is_named(tiny_model, tmp_path):
    tiny_model("llama", torch.float32).save_pretrained(tmp_path, max_shard_size="20KB")
    load(tmp_path)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"lacks {lost.name}"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no-such-model"}'])
def test_a_broken_configuration_is_an_error_that_names_the_folder(text, llama):
    (llama / "config.json").write_text(text)
    with pytest.raises(ModelError, match=str(llama)):
        load(llama)


@pytest.mark.parametrize(
    ("value", "count"), [(float("nan"), "1 NaN and 0 infinite"), (float("-inf"), "0 NaN and 1 infinite")]
)
def test_a_weight_that_is_not_finite_is_named(value, count, llama):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(llama, lambda weights: weights[name][3].narrow(0, 5, 1).fill_(value))
    with pytest.raises(ModelError, match=rf"{name} in .* holds {count} of 768 values"):
        load(llama)


def test_a_weight_that_overflows_in_float16_is_an_error_that_names_the_dtype(llama):
    rewrite(llama, lambda weights: weights["model.norm.weight"].fill_(1e6))
    load(llama)
    with pytest.raises(ModelError, match=r"model\.norm\.weight .* 24 infinite .*overflow in float16"):
        load(llama, dtype=torch.float16)


def test_a_causal_model_asked_of_a_classifier_names_the_weights_that_would_be_random(model_folder):
    with pytest.raises(ModelError, match=r"lacks 6 weights that BertLMHeadModel needs \(cls\..*BertForSequenceClassif"):
        load(model_folder("bert"), kind="causal_lm")


def test_a_classifier_asked_of_a_causal_model_names_the_head_it_lacks(model_folder):
    with pytest.raises(ModelError, match=r"lacks 1 weights .*\(score\.weight\).*saved as LlamaForCausalLM"):
        load(model_folder("llama"), kind="sequence_classification")


def test_a_weight_that_the_checkpoint_lacks_is_named(llama):
    rewrite(llama, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 weights that LlamaForCausalLM needs \(model\.norm\.weight\)"):
        load(llama)


def test_a_weight_that_the_model_has_no_place_for_is_named(llama):
    rewrite(llama, lambda weights: weights.update(extra=torch.ones(2)))
    with pytest.raises(ModelError, match=r"holds 1 weights that LlamaForCausalLM has no place for \(extra\)"):
        load(llama)


def test_weights_of_another_shape_than_the_configuration_says_are_named(llama):
    reconfigure(llama, intermediate_size=48)
    with pytest.raises(ModelError, match=r"6 weights .*down_proj\.weight is \(24, 32\), expected \(24, 48\)"):
        load(llama)


def test_an_architecture_without_the_kind_asked_for_is_an_error(llama):
    reconfigure(llama, model_type="vit")
    with pytest.raises(ModelError, match="can't be loaded as a causal_lm model"):
        load(llama)


@pytest.mark.parametrize("name", ["flsh", "someone/some-kernel"])
def test_an_attention_implementation_that_does_not_exist_or_would_fetch_code_is_refused(name, llama):
    with pytest.raises(ModelError, match=name):
        load(llama, attention=name)


def test_the_attention_implementation_asked_for_is_the_one_used(llama):
    assert load(llama, attention="eager").config._attn_implementation == "eager"


def test_code_beside_the_weights_does_not_run_unless_trusted(llama):
    (llama / "custom.py").write_text("raise SystemExit('the code ran')")
    reconfigure(llama, model_type="custom", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"})
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(llama)


def test_a_decoder_classifier_that_does_not_know_its_padding_token_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=20, **sizes, num_labels=2)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="sets no pad_token_id"):
        load(tmp_path, kind="sequence_classification")
    reconfigure(tmp_path, pad_token_id=3)
    assert load(tmp_path, kind="sequence_classification").config.pad_token_id == 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "lora"])
def test_gradient_checkpointing_recomputes_blocks_without_dropout(family, model_folder, tokenizer):
    inputs = torch.tensor([tokenizer("The river was named").input_ids])
    plain = load(model_folder(family))
    model = load(model_folder(family), gradient_checkpointing=True)
    calls = []
    name = next(name for name, module in model.named_modules() if name.endswith(("mlp.c_fc", "mlp.up_proj")))
    model.get_submodule(name).register_forward_hook(lambda *args: calls.append(name))
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    logits = model(input_ids=inputs, use_cache=False).logits
    logits.sum().backward()
    assert len(calls) == 2
    torch.testing.assert_close(logits.detach(), plain(input_ids=inputs).logits)


def test_an_adapter_that_names_no_model_is_an_error(lora):
    reconfigure(lora, "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ModelError, match=r"adapter_config\.json names no base_model_name_or_path"):
        load(lora)


def test_an_adapter_whose_model_is_gone_is_an_error(lora, tmp_path):
    reconfigure(lora, "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"base_model_name_or_path in .*/gone: there is no such folder"):
        load(lora)


def test_an_adapter_weight_that_the_file_lacks_is_an_error(lora):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(lora, lambda weights: weights.pop(name), "adapter_model.safetensors")
    with pytest.raises(ModelError, match=f"lacks 1 weights .*{name}"):
        load(lora)


def test_an_adapter_weight_that_the_model_has_no_place_for_is_an_error(lora):
    rewrite(lora, lambda weights: weights.update(extra=torch.ones(2)), "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"holds 1 weights that have no place in the model \(extra\)"):
        load(lora)


def test_an_adapter_of_another_shape_is_an_error(lora):
    reconfigure(lora, "adapter_config.json", r=5)
    with pytest.raises(ModelError, match="don't fit LlamaForCausalLM"):
        load(lora)


def test_a_classifier_adapter_brings_the_head_that_its_model_lacks(model_folder, tmp_path):
    peft = pytest.importorskip("peft")
    base = model_folder("llama")
    config = transformers.AutoConfig.from_pretrained(base, num_labels=3)
    classifier = transformers.LlamaForSequenceClassification(config)
    adapters = peft.get_peft_model(classifier, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    adapters.save_pretrained(tmp_path)
    reconfigure(tmp_path, "adapter_config.json", base_model_name_or_path=str(base))
    model = load(tmp_path, kind="sequence_classification")
    torch.testing.assert_close(model.score.weight, adapters.score.weight)
    with pytest.raises(ModelError, match=r"holds \d+ weights that have no place in the model .*score"):
        load(tmp_path, kind="causal_lm")


def test_adapters_without_peft_installed_name_the_extra(model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"pip install 'influence\[peft\]'"):
        load(model_folder("lora"))


def test_the_tokeniser_beside_the_model_is_loaded(model_folder, tokenizer):
    found = load_tokeniser(settings_for(model_folder("llama")))
    assert found("The river").input_ids == tokenizer("The river").input_ids


def test_a_folder_without_a_tokeniser_says_what_to_set(tiny_model, tmp_path):
    tiny_model("bert", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds no tokeniser .*set\s+model\.tokeniser"):
        load_tokeniser(settings_for(tmp_path))


def test_another_folder_can_hold_the_tokeniser(tiny_model, model_folder, tmp_path, tokenizer):
    tiny_model("llama", torch.float32).save_pretrained(tmp_path)
    found = load_tokeniser(settings_for(tmp_path, tokeniser=str(model_folder("llama"))))
    assert len(found) == len(tokenizer)


def test_adapters_without_a_tokeniser_use_the_one_of_their_model(lora, model_folder, tokenizer):
    for file in [*lora.glob("tokenizer*"), *lora.glob("chat_template*")]:
        file.unlink()
    reconfigure(lora, "adapter_config.json", base_model_name_or_path=str(model_folder("llama")))
    assert len(load_tokeniser(settings_for(lora))) == len(tokenizer)


def test_a_damaged_tokeniser_is_an_error_that_names_the_folder(llama):
    (llama / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=f"tokeniser in {llama} can't be loaded"):
        load_tokeniser(settings_for(llama))


def test_a_tokeniser_of_special_tokens_only_is_refused(tiny_model, tmp_path):
    tiny_model("bert", torch.float32).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ModelError, match=r"can't be loaded|no vocabulary"):
        load_tokeniser(settings_for(tmp_path))


def test_a_tokeniser_with_more_tokens_than_embeddings_is_another_models(tiny_model, model_folder):
    tokeniser = load_tokeniser(settings_for(model_folder("llama")))
    model = tiny_model("llama")
    model.resize_token_embeddings(tokeniser.vocab_size - 1)
    with pytest.raises(ModelError, match=f"{tokeniser.vocab_size} tokens and the model embeddings"):
        pad_id(model, tokeniser)


def test_a_token_added_to_a_full_vocabulary_makes_it_no_other_models_and_never_pads(tiny_model, model_folder):
    # transformers 5 adds one of its own to a Qwen2 tokeniser's.
    tokeniser = load_tokeniser(settings_for(model_folder("llama")))
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokeniser))
    tokeniser.add_tokens(["one more"])
    model.config.pad_token_id, tokeniser.pad_token, tokeniser.eos_token = None, "one more", "."
    assert pad_id(model, tokeniser) == tokeniser.convert_tokens_to_ids(".")


def test_the_padding_token_is_the_models_then_the_tokenisers_then_its_end_of_text(tiny_model, model_folder):
    model, tokeniser = tiny_model("llama"), load_tokeniser(settings_for(model_folder("llama")))
    model.config.pad_token_id, tokeniser.pad_token = 7, "."
    assert pad_id(model, tokeniser) == 7
    model.config.pad_token_id = None
    assert pad_id(model, tokeniser) == tokeniser.convert_tokens_to_ids(".")
    tokeniser.pad_token = None
    assert pad_id(model, tokeniser) == tokeniser.eos_token_id
    tokeniser.eos_token = None
    assert pad_id(model, tokeniser) == 0


def test_the_digest_names_content_not_place_and_changes_with_weights_configuration_or_adapters(
    llama, lora, model_folder
):
    original = model_digest(settings_for(model_folder("llama")))
    assert model_digest(settings_for(llama)) == original
    rewrite(llama, lambda weights: weights["model.norm.weight"].add_(1))
    changed = model_digest(settings_for(llama))
    reconfigure(llama, rms_norm_eps=0.5)
    assert len({original, changed, model_digest(settings_for(llama))}) == 3
    adapted = model_digest(settings_for(lora))
    reconfigure(lora, "adapter_config.json", base_model_name_or_path=str(llama))
    moved = model_digest(settings_for(lora))
    rewrite(lora, lambda weights: next(iter(weights.values())).add_(1), "adapter_model.safetensors")
    assert len({adapted, moved, model_digest(settings_for(lora))}) == 3


def test_the_digest_of_a_hub_snapshot_is_its_commit(llama, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(llama, tmp_path / "snapshots" / commit)
    assert model_digest(settings_for(snapshot)) == commit


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json"])
def test_a_hub_snapshot_whose_files_are_no_longer_what_was_downloaded_is_refused(changed, llama, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / ("0123456789" * 4), tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in llama.iterdir():
        content = file.read_bytes()
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        name = hashlib.sha256(content).hexdigest() if file.suffix == ".safetensors" else git
        (snapshot / file.name).symlink_to(shutil.copy(file, blobs / name))
    assert model_digest(settings_for(snapshot)) == snapshot.name
    content = bytearray((snapshot / changed).read_bytes())
    content[-2] ^= 1
    (snapshot / changed).resolve().write_bytes(content)
    with pytest.raises(ModelError, match=rf"{changed} in the hub's cache has changed since it was downloaded"):
        model_digest(settings_for(snapshot))


def test_the_tokenisers_digest_changes_with_its_templates_for_tools(llama):
    before = tokeniser_digest(ModelSettings(path=str(llama)))
    (llama / "additional_chat_templates").mkdir()
    (llama / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}{{ messages }}")
    named = tokeniser_digest(ModelSettings(path=str(llama)))
    (llama / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}{{ tools }}")
    assert len({before, named, tokeniser_digest(ModelSettings(path=str(llama)))}) == 3


def test_the_tokenisers_digest_changes_with_its_chat_template_and_not_with_the_weights(llama):
    original = tokeniser_digest(settings_for(llama))
    rewrite(llama, lambda weights: weights["model.norm.weight"].add_(1))
    assert tokeniser_digest(settings_for(llama)) == original
    (llama / "chat_template.jinja").write_text("{{ messages }}")
    assert tokeniser_digest(settings_for(llama)) != original


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "chat_template.jinja", "config.json"])
@pytest.mark.parametrize("kind", ["a FIFO", "a link that leads nowhere"])
def test_a_file_of_a_model_that_is_none_is_named_and_not_passed_over(llama, name, kind):
    (llama / name).unlink(missing_ok=True)
    if kind == "a FIFO":
        os.mkfifo(llama / name)
    else:
        (llama / name).symlink_to("../blobs/gone")
    for use in (load_tokeniser, model_digest):
        with pytest.raises(ModelError, match=rf"{name} is {kind}, expected a regular file.*cp -rL"):
            use(settings_for(llama))
    with pytest.raises(ModelError, match=f"{name} is {kind}"):
        load(llama)


def test_adapters_that_name_other_adapters_are_refused_before_one_is_looked_for(lora, monkeypatch):
    reached = []
    monkeypatch.setattr("socket.socket.connect", lambda *given: reached.append(given))
    reconfigure(lora, "adapter_config.json", peft_type="XLORA", adapters={"one": "someone/adapter"}, hidden_size=24)
    with pytest.raises(ModelError, match=r"mixes other adapters \(XLORA\).*merge them into one"):
        load(lora)
    assert reached == []
