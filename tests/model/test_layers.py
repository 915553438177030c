"""Which layers are tracked: the default, what only a glob can name, and what can't be tracked at all."""

import logging

import pytest
import torch
import transformers
from torch import nn

from influence.errors import ModelError
from influence.model.layers import LayerSettings, tracked_layers


def names(model, **settings):
    return [layer.name for layer in tracked_layers(model, LayerSettings(**settings))]


@pytest.mark.parametrize(
    ("family", "count"), [("gpt2", 8), ("gptneox", 8), ("llama", 14), ("qwen2", 14), ("qwen3", 14), ("bert", 14)]
)
def test_every_linear_layer_of_the_blocks_and_heads_is_tracked_and_the_unembedding_is_not(family, count, tiny_model):
    model = tiny_model(family)
    layers = tracked_layers(model)
    assert len(layers) == count
    order = [name for name, _ in model.named_modules()]
    assert [layer.name for layer in layers] == sorted((layer.name for layer in layers), key=order.index)
    assert not {"lm_head", "embed_out"} & {layer.name for layer in layers}
    for layer in layers:
        assert layer.kind == ("conv1d" if family == "gpt2" else "linear")
        shape = tuple(layer.module.weight.shape)
        assert (layer.outputs, layer.inputs) == (shape[::-1] if family == "gpt2" else shape)
        assert model.get_submodule(layer.name) is layer.module


def test_a_classifiers_head_is_tracked(tiny_model):
    assert names(tiny_model("bert"))[-1] == "classifier"


def test_of_a_lora_model_only_the_adapters_are_tracked(tiny_model):
    found = names(tiny_model("lora"))
    assert len(found) == 2 * 3 * 2
    assert all(name.endswith(("lora_A.default", "lora_B.default")) for name in found)


def test_a_head_trained_beside_the_adapters_is_tracked_and_its_frozen_original_is_not():
    peft = pytest.importorskip("peft")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(vocab_size=20, **sizes, num_labels=2))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    assert [name.removeprefix("base_model.model.") for name in names(model)] == [
        "model.layers.0.self_attn.q_proj.lora_A.default",
        "model.layers.0.self_attn.q_proj.lora_B.default",
        "score.modules_to_save.default",
    ]


def test_a_glob_names_the_frozen_layers_under_an_adapter(tiny_model):
    found = names(tiny_model("lora"), include=["*.q_proj.base_layer", "*.k_proj"])
    assert [name.rpartition("self_attn.")[2] for name in found] == ["q_proj.base_layer", "k_proj"] * 2


def test_exclude_wins_over_include(tiny_model):
    found = names(tiny_model("llama"), include=["model.layers.0.*"], exclude=["*.mlp.*", "*.o_proj"])
    assert found == [f"model.layers.0.self_attn.{side}_proj" for side in "qkv"]


def test_embeddings_and_the_unembedding_are_tracked_where_a_glob_names_them(tiny_model):
    layers = tracked_layers(tiny_model("llama"), LayerSettings(include=("lm_head", "*embed_tokens")))
    assert [(layer.name, layer.kind, layer.inputs, layer.outputs) for layer in layers] == [
        ("model.embed_tokens", "embedding", 300, 24),
        ("lm_head", "linear", 24, 300),
    ]


def test_a_star_beside_another_glob_still_means_the_default_choice(tiny_model):
    model = tiny_model("llama")
    assert names(model, include=["*", "lm_head"]) == [*names(model), "lm_head"]


def test_a_bias_is_one_more_input_of_the_layers_that_have_one(tiny_model):
    layers = tracked_layers(tiny_model("qwen2"), LayerSettings(include=("model.layers.0.*",), bias=True))
    by_name = {layer.name.rpartition(".")[2]: layer for layer in layers}
    assert (by_name["q_proj"].bias, by_name["q_proj"].inputs) == (True, 25)
    assert (by_name["o_proj"].bias, by_name["o_proj"].inputs) == (False, 24)


def test_a_convolution_has_one_input_for_each_place_of_its_patch():
    (layer,) = tracked_layers(nn.Sequential(nn.Conv2d(3, 5, (2, 4))), LayerSettings(bias=True))
    assert (layer.kind, layer.inputs, layer.outputs) == ("conv2d", 3 * 2 * 4 + 1, 5)


def test_a_grouped_convolution_is_refused_by_name_until_it_is_excluded():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"^0 is a convolution in 2 groups.*model\.layers\.exclude"):
        tracked_layers(model)
    assert names(model, exclude=["0"]) == ["1"]


def test_a_layer_that_attention_reads_without_calling_is_not_tracked():
    assert names(nn.TransformerEncoderLayer(8, 2, 16)) == ["linear1", "linear2"]


def test_a_module_used_twice_is_listed_once():
    shared = nn.Linear(3, 3)
    assert names(nn.Sequential(shared, nn.ReLU(), shared)) == ["0"]


def test_a_glob_that_matches_no_layer_is_an_error_that_lists_layers(tiny_model):
    with pytest.raises(
        ModelError, match=r"'\*\.q_prj', which matches no layer .*its 16 layers are model\.embed_tokens"
    ):
        names(tiny_model("llama"), include=["*.q_prj", "*.v_proj"])


def test_a_glob_that_names_a_block_instead_of_its_layers_says_what_was_meant(tiny_model):
    with pytest.raises(ModelError, match=r"did you mean 'model\.layers\.0\.\*'\?"):
        names(tiny_model("llama"), include=["model.layers.0"])


def test_excluding_every_layer_is_an_error(tiny_model):
    with pytest.raises(
        ModelError, match=r"No layer of LlamaForCausalLM matches include \['\*'\] without exclude \['\*'\]"
    ):
        names(tiny_model("llama"), exclude=["*"])


def test_a_model_without_layers_that_can_be_tracked_says_so():
    with pytest.raises(ModelError, match=r"has no nn\.Linear"):
        names(nn.Sequential(nn.LayerNorm(3)))


def test_an_exclude_that_matches_nothing_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        names(nn.Sequential(nn.Linear(2, 2, dtype=torch.float64)), exclude=["heads.*"])
    assert "'heads.*', which matches no module" in caplog.text


def test_a_layer_whose_weight_is_computed_from_others_is_not_tracked():
    plain = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert names(plain) == ["0"]
    with pytest.raises(ModelError, match="matches no layer"):
        names(plain, include=["1"])


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("PromptTuningConfig", r"prompt tuning \(PROMPT_TUNING\)"),
        ("PrefixTuningConfig", r"prefix tuning \(PREFIX_TUNING\)"),
        ("PromptEncoderConfig", r"p-tuning \(P_TUNING\)"),
    ],
)
def test_adapters_that_learn_a_prompt_are_refused_by_their_kind(kind, named, tiny_model):
    peft = pytest.importorskip("peft")
    settings = {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}
    if kind == "PromptEncoderConfig":
        settings["encoder_hidden_size"] = 4
    model = peft.get_peft_model(tiny_model("llama"), getattr(peft, kind)(**settings))
    with pytest.raises(ModelError, match=named):
        names(model)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        ("LoHaConfig", {"target_modules": ["q_proj"]}),
        ("LoKrConfig", {"target_modules": ["q_proj"]}),
        ("VeraConfig", {"target_modules": ["q_proj"]}),
        ("AdaLoraConfig", {"target_modules": ["q_proj"], "total_step": 10}),
        ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
        ("OFTConfig", {"target_modules": ["q_proj"], "oft_block_size": 4}),
        ("TrainableTokensConfig", {"token_indices": [1, 2]}),
    ],
)
def test_adapters_without_layers_are_refused_by_their_kind(kind, settings, tiny_model):
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(tiny_model("llama", torch.float32), config)
    with pytest.raises(ModelError, match=rf"None of the weights that these adapters \({config.peft_type.value}\)"):
        names(model)
