"""The kernel that stands in for sdpa in bfloat16 on a CPU gives the same function."""

import pytest
import torch

from influence.model.attention import FLOAT32_ATTENTION, use_default_attention
from influence.model.load import ModelSettings, load_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["gpt2", "gptneox", "llama", "qwen3", "bert"])
def test_the_float32_kernel_is_the_same_function_as_sdpa(tiny_model, ragged_batch, family):
    model = tiny_model(family, torch.float32)
    inputs = {"input_ids": ragged_batch.input_ids, "attention_mask": ragged_batch.attention_mask}
    with torch.no_grad():
        plain = model(**inputs).logits
        use_default_attention(model, CPU, torch.bfloat16)
        assert model.config._attn_implementation == FLOAT32_ATTENTION
        widened = model(**inputs).logits
    real = ragged_batch.attention_mask.bool() if plain.ndim == 3 else slice(None)
    torch.testing.assert_close(widened[real], plain[real])


def test_only_bfloat16_on_a_cpu_with_nothing_named_gets_it(model_folder):
    path = str(model_folder("llama"))
    used = {
        (attention, dtype): load_model(ModelSettings(path=path, attention=attention), CPU, dtype).config
        for attention, dtype in [(None, torch.bfloat16), (None, torch.float32), ("eager", torch.bfloat16)]
    }
    found = {key: config._attn_implementation for key, config in used.items()}
    assert list(found.values()) == [FLOAT32_ATTENTION, "sdpa", "eager"]
