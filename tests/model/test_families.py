"""Rows and losses of many architectures and adapters: right, or refused by name. See docs/models.md."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from influence.errors import InfluenceError
from influence.task import SequenceClassification
from tests.model.families import ADAPTERS, CAUSAL, CLASSIFIERS
from tests.model.family_table import adapted, batch, causal_model, classifier, error_of

EXPERTS = r"Only 1?\d|Only 2\d\.\d % of .* trained weights are tracked.*experts|input_linear"
PAST = "reads the weight of .* without calling it"
SPLIT = "can't be split into the 4 examples"
NO_LAYER = "None of the weights that these adapters"
REFUSED_CAUSAL = {
    "BLOOM slow": PAST,
    **dict.fromkeys(("Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE", "Granite-MoE", "DeepSeek-V2"), EXPERTS),
    **dict.fromkeys(("DeepSeek-V3", "gpt-oss", "JetMoE"), EXPERTS),
    **dict.fromkeys(("Phi-MoE", "Llama 4"), "router was not called with one tensor"),
    **dict.fromkeys(("Mamba", "Jamba"), PAST),
    "XLNet LM": "trained with another loss",
    "RWKV rescaled": r"divides the weights of its blocks after the first 1 \(of 2\).*rescale_every: 0",
    **dict.fromkeys(("T5", "BART"), "is an encoder-decoder"),
}
REFUSED_CLASSIFIERS = {
    **dict.fromkeys(("DeBERTa", "DeBERTa-v2"), SPLIT),
    "SqueezeBERT": r"Only .* trained weights are tracked",
    **dict.fromkeys(("FNet", "ConvBERT", "XLNet"), "reads padding though its attention mask hides it"),
}
TRACKED_ADAPTERS = ("LoRA", "DoRA", "rsLoRA", "PiSSA", "OLoRA", "LoRA with bias", "LoRA + modules_to_save")
REFUSED_ADAPTERS = {
    **{name: NO_LAYER for name in ADAPTERS if name not in (*TRACKED_ADAPTERS, "LoRA on lm_head")},
    **dict.fromkeys(("LoRA + saved embeddings", "LoRA on embeddings"), "Only .* trained weights are tracked"),
    "LoRA target_parameters": PAST,
    "prompt tuning": "has prompt tuning",
    "prefix tuning": "has prefix tuning",
    "p-tuning": "has p-tuning",
}
del REFUSED_ADAPTERS["LoRA trainable tokens"]
ROUNDED = ("GPT-J", "GPT-Neo", "BLOOM", "MPT", "Gemma 2", "Mamba 2", "XGLM", "Qwen3-Next", "Longformer")
"""Models that compute a part in float32 whatever their dtype."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def held(build, name, refused):
    """Hold a model to autograd, or to its refusal."""
    transformers.logging.set_verbosity_error()
    if name in refused:
        with pytest.raises(InfluenceError, match=refused[name]):
            error_of(build(name))
    else:
        assert error_of(build(name)) < (1e-6 if name in ROUNDED else 1e-10)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_language_model_has_autograds_rows_or_is_refused(name):
    held(causal_model, name, REFUSED_CAUSAL)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_has_autograds_rows_or_is_refused(name):
    held(classifier, name, REFUSED_CLASSIFIERS)


def test_a_classifier_that_reads_padding_is_refused_where_the_dtypes_rounding_hides_it():
    with pytest.raises(InfluenceError, match="reads padding though its attention mask hides it"):
        SequenceClassification().example_loss(classifier("ConvBERT").to(torch.bfloat16), batch())


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_have_autograds_rows_or_are_refused(name):
    pytest.importorskip("peft")
    held(adapted, name, REFUSED_ADAPTERS)


@pytest.mark.parametrize(
    ("kind", "names", "refused"),
    [
        ("language model", CAUSAL, REFUSED_CAUSAL),
        ("classifier", CLASSIFIERS, REFUSED_CLASSIFIERS),
        ("adapters", ADAPTERS, REFUSED_ADAPTERS),
    ],
)
def test_the_page_on_models_lists_them_all_with_their_outcome(kind, names, refused):
    listed = dict(re.findall(rf"^\| (.+?) \| {kind} \| (right|refused)", DOCUMENT.read_text("utf-8"), re.MULTILINE))
    assert listed == {name: "refused" if name in refused else "right" for name in names}
