"""The kernel that stands in for sdpa in bfloat16 on a CPU gives the same function."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from influence.gradients.capture import Capture
from influence.gradients.projection import Projection
from influence.model.attention import CPU_BFLOAT16, BlockedCausal, use_default_attention
from influence.model.layers import tracked_layers
from influence.model.load import ModelSettings, load_model
from influence.task import CausalLM

CPU = torch.device("cpu")


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "gptneox", "llama", "qwen3", "bert"])
def test_the_cpu_kernel_is_the_same_function_as_sdpa_with_a_mask_and_without(tiny_model, ragged_batch, family, masked):
    model = tiny_model(family, torch.float32)
    inputs = {"input_ids": ragged_batch.input_ids}
    if masked:
        inputs["attention_mask"] = ragged_batch.attention_mask
    with torch.no_grad():
        plain = model(**inputs).logits
        use_default_attention(model, CPU, torch.bfloat16)
        assert model.config._attn_implementation == CPU_BFLOAT16
        widened = model(**inputs).logits
    real = ragged_batch.attention_mask.bool() if masked and plain.ndim == 3 else slice(None)
    torch.testing.assert_close(widened[real], plain[real])


@pytest.mark.parametrize("width", [3, 5, 8])
@pytest.mark.parametrize("positions", [1, 63, 64, 65, 130, 512, 513, 700])
def test_causal_attention_in_blocks_has_the_values_and_gradients_of_sdpa(positions, width):
    generator = torch.Generator().manual_seed(positions)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, dtype=torch.float64, generator=generator)

    tensors = [random(2, positions, size).requires_grad_() for size in (5, 5, width)]
    upstream = random(positions, 2, width)
    found = BlockedCausal.apply(*tensors, 0.7)
    expected = scaled_dot_product_attention(*tensors, is_causal=True, scale=0.7).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, upstream), torch.autograd.grad(expected, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_only_bfloat16_on_a_cpu_with_nothing_named_gets_it(model_folder):
    path = str(model_folder("llama"))
    used = {
        (attention, dtype): load_model(ModelSettings(path=path, attention=attention), CPU, dtype).config
        for attention, dtype in [(None, torch.bfloat16), (None, torch.float32), ("eager", torch.bfloat16)]
    }
    found = {key: config._attn_implementation for key, config in used.items()}
    assert list(found.values()) == [CPU_BFLOAT16, "sdpa", "eager"]


@pytest.mark.parametrize("family", ["gpt2", "gptneox", "llama", "qwen3"])
def test_causal_rows_in_bfloat16_are_as_near_to_float32_as_those_of_sdpa(tiny_model, ragged_batch, family):
    def rows(dtype: torch.dtype, widened: bool) -> torch.Tensor:
        model = tiny_model(family, dtype)
        if widened:
            use_default_attention(model, CPU, dtype)
        with Capture(model, tracked_layers(model), Projection()) as capture:
            return capture(CausalLM().example_loss, ragged_batch)[0]

    exact = rows(torch.float32, False)
    sdpa, ours = ((rows(torch.bfloat16, widened) - exact).norm() / exact.norm() for widened in (False, True))
    assert ours < 0.05
    assert ours < 1.2 * sdpa
