"""The most tokens a model takes, found where one more fails."""

import pytest
import torch
import transformers

from influence.model.positions import max_positions

SIZES = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "max_position_embeddings": 66}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2}
TEXT = {"vocab_size": 300, "d_model": 24, "max_position_embeddings": 64, **DECODER}


def roberta(padding):
    config = transformers.RobertaConfig(**SIZES, **HEADS, pad_token_id=padding)
    return transformers.RobertaForSequenceClassification(config)


def causal(name, **settings):
    return lambda: transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))


MODELS = {
    "RoBERTa": (lambda: roberta(1), 64),
    "RoBERTa with another padding token": (lambda: roberta(5), 60),
    "XLM-R": (causal("XLMRobertaConfig", **SIZES, **HEADS, is_decoder=True, pad_token_id=1), 64),
    "MPNet": (lambda: transformers.MPNetModel(transformers.MPNetConfig(**SIZES, **HEADS)), 64),
    "BERT": (causal("BertConfig", **SIZES, **HEADS, is_decoder=True), 66),
    "OPT": (causal("OPTConfig", **{**SIZES, **HEADS, "ffn_dim": 32}), 66),
    "BART": (causal("BartConfig", **TEXT), 64),
    "GPT-2": (causal("GPT2Config", vocab_size=300, n_embd=24, n_layer=1, n_head=2, n_positions=40), 40),
    "MPT": (causal("MptConfig", vocab_size=300, d_model=24, n_layers=1, n_heads=2, max_seq_len=50), 50),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_as_many_tokens_as_said_and_not_one_more(name):
    build, expected = MODELS[name]
    model = build().eval()
    assert max_positions(model) == expected
    with torch.no_grad():
        model(input_ids=torch.full((1, expected), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, expected + 1), 7))


def test_marian_counts_from_zero_though_its_table_has_a_padding_token():
    assert max_positions(causal("MarianConfig", **TEXT, pad_token_id=9, decoder_vocab_size=300)()) == 64


@pytest.mark.parametrize("limit", [-1, 0])
def test_a_configuration_of_minus_one_position_sets_no_limit(limit):
    model = causal("GPTNeoXConfig", **SIZES, num_attention_heads=2)()
    model.config.max_position_embeddings = limit
    assert max_positions(model) is None


def test_two_rows_that_a_table_has_to_spare_are_not_positions():
    settings = transformers.NystromformerConfig(**SIZES, **HEADS)
    assert max_positions(transformers.NystromformerModel(settings)) == 66


def test_models_of_relative_positions_have_no_limit():
    assert max_positions(causal("XLNetConfig", vocab_size=300, d_model=24, n_layer=1, n_head=2)()) is None
    assert max_positions(causal("BloomConfig", vocab_size=300, hidden_size=24, n_layer=1, n_head=2)()) is None


def test_virtual_tokens_of_an_adapter_take_positions():
    peft = pytest.importorskip("peft")
    model = causal("GPT2Config", vocab_size=300, n_embd=24, n_layer=1, n_head=2, n_positions=40)()
    adapted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6))
    assert max_positions(adapted) == 34
