"""Gradients divided by the root of the optimiser's second moments, against dividing what autograd gives, in float64."""

import pytest
import torch
from pydantic import ValidationError

from influence.errors import OptimiserMismatch
from influence.gradients.adam import GradientSettings, denominators
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM
from tests.gradients.conftest import examples, task_of
from tests.gradients.test_capture import ImageTask, Toy
from tests.reference.microbatch import all_requiring_gradients, weight_gradient

EPSILON = 1e-3
FAMILIES = ["gpt2", "gptneox", "llama", "bert", "lora"]


def random_moments(model):
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in model.named_parameters()
    }


def divided_one_by_one(model, layers, projection, measure, singles, moments):
    """Rows [N, D]: one backward an example, every parameter's gradient divided as it lies, then projected."""
    with all_requiring_gradients(model):
        return torch.stack([divided(model, layers, projection, measure, single, moments) for single in singles])


def divided(model, layers, projection, measure, single, moments):
    model.zero_grad(set_to_none=True)
    measure(model, single).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad /= moments[name].sqrt() + EPSILON
    blocks = []
    for layer in layers:
        sides = projection.sides(layer.name, layer.inputs, layer.outputs, torch.float64)
        gradient = weight_gradient(layer)
        if sides.outputs is not None:
            gradient = sides.outputs.double() @ gradient
        if sides.inputs is not None:
            gradient = gradient @ sides.inputs.double().T
        blocks.append(gradient.flatten())
    model.zero_grad(set_to_none=True)
    return torch.cat(blocks)


def captured(model, layers, projection, measure, batch, moments, **how):
    divisors = denominators(model, layers, moments, EPSILON)
    with Capture(model, layers, projection, divisors) as capture:
        return capture(measure, batch, **how)[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_divided_rows_equal_dividing_one_backward_per_example(tiny_model, ragged_batch, seeded, family, bias):
    model, task = tiny_model(family), task_of(family)
    layers, moments = tracked_layers(model, LayerSettings(bias=bias)), random_moments(model)
    fast = captured(model, layers, seeded, task.example_loss, ragged_batch, moments)
    slow = divided_one_by_one(model, layers, seeded, task.example_loss, examples(ragged_batch), moments)
    assert slow.abs().sum() > 0
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "kronecker"])
def test_divided_rows_of_an_embedding_and_an_unembedding_equal_the_slow_ones(tiny_model, ragged_batch, kind):
    model = tiny_model("llama")
    projection = Projection(ProjectionSettings(kind=kind, **({} if kind == "none" else {"p": 5, "q": 7})))
    layers, moments = tracked_layers(model, LayerSettings(include=("lm_head", "*embed_tokens"))), random_moments(model)
    assert {layer.kind for layer in layers} == {"embedding", "linear"}
    measure = CausalLM().example_loss
    fast = captured(model, layers, projection, measure, ragged_batch, moments)
    slow = divided_one_by_one(model, layers, projection, measure, examples(ragged_batch), moments)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 32 * 2**20])
@pytest.mark.parametrize("kind", ["none", "kronecker"])
def test_divided_rows_of_convolutions_and_a_layer_used_twice_equal_the_slow_ones(monkeypatch, kind, chunk):
    monkeypatch.setattr("influence.gradients.adam.CHUNK_BYTES", chunk)
    projection = Projection(ProjectionSettings(kind=kind, **({} if kind == "none" else {"p": 5, "q": 3})))
    model = Toy().double()
    images, labels = torch.randn(4, 2, 12, 11, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    layers, moments = tracked_layers(model, LayerSettings(bias=True)), random_moments(model)
    singles = [(images[n : n + 1], labels[n : n + 1]) for n in range(4)]
    fast = captured(model, layers, projection, ImageTask().example_loss, (images, labels), moments)
    slow = divided_one_by_one(model, layers, projection, ImageTask().example_loss, singles, moments)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_a_tied_weight_is_divided_by_the_moments_of_its_one_parameter(tiny_model, ragged_batch, whole):
    model = tiny_model("qwen2")
    layers, moments = tracked_layers(model, LayerSettings(include=("lm_head",))), random_moments(model)
    assert "lm_head.weight" not in moments
    fast = captured(model, layers, whole, CausalLM().example_loss, ragged_batch, moments)
    with Capture(model, layers, whole) as capture:
        plain = capture(CausalLM().example_loss, ragged_batch)[0]
    expected = plain / (moments["model.embed_tokens.weight"].sqrt() + EPSILON).flatten()
    torch.testing.assert_close(fast, expected, rtol=1e-9, atol=1e-12)


def test_raw_rows_of_a_dividing_capture_are_those_of_a_plain_one_whatever_came_before(tiny_model, ragged_batch, seeded):
    model = tiny_model("gpt2", torch.bfloat16)
    layers, measure = tracked_layers(model), CausalLM().example_loss
    with Capture(model, layers, seeded) as capture:
        plain = capture(measure, ragged_batch)[0]
    with Capture(model, layers, seeded, denominators(model, layers, random_moments(model), EPSILON)) as capture:
        divided = capture(measure, ragged_batch)[0]
        assert torch.equal(capture(measure, ragged_batch, raw=True)[0], plain)
        assert torch.equal(capture(measure, ragged_batch)[0], divided)
    assert not torch.allclose(divided, plain, rtol=0.1)


def spoilt(name, change):
    def spoil(moments):
        if change is None:
            del moments[name]
        else:
            moments[name] = change(moments[name])

    return spoil


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"no second moments of model.layers.0.mlp.up_proj.weight \(32, 24\), which is tracked; it has "),
        (lambda v: v.T.contiguous(), r"up_proj.weight are \(24, 32\), and the parameter is \(32, 24\)"),
        (lambda v: v.clone().index_fill_(0, torch.tensor([3]), -1.0), "24 of the 768 .*up_proj.weight are negative"),
        (lambda v: v.clone().index_fill_(0, torch.tensor([3]), torch.nan), "24 of the 768 second moments"),
        (torch.zeros_like, "up_proj.weight are all zero"),
    ],
)
def test_second_moments_that_cannot_be_are_refused_by_name(tiny_model, change, message):
    model = tiny_model("llama")
    moments = random_moments(model)
    spoilt(NAME, change)(moments)
    with pytest.raises(OptimiserMismatch, match=message):
        denominators(model, tracked_layers(model), moments, EPSILON)


def test_second_moments_that_are_zero_in_places_are_told_of(tiny_model, caplog):
    model = tiny_model("llama")
    moments = random_moments(model)
    moments[NAME][:8] = 0
    denominators(model, tracked_layers(model), moments, EPSILON)
    assert f"{NAME}: 25% of the second moments are zero" in caplog.text


def test_the_kind_alone_is_short_for_the_settings_and_raw_takes_no_state():
    assert GradientSettings.model_validate("raw") == GradientSettings()
    assert GradientSettings.model_validate("adam").kind == "adam"
    with pytest.raises(ValidationError, match="raw gradients read no optimiser's state"):
        GradientSettings(state="runs/checkpoint-3")
