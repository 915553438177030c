"""The covariances against the slow twin's: every layer type, padding, reuse, checkpointing, partial sums, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from influence.curvature.covariance import CovarianceFit, CovarianceSums, FactorSettings, widths_of
from influence.curvature.kfac import decompose
from influence.errors import CurvatureError
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM
from tests.curvature.conftest import covariances, gradients
from tests.gradients.conftest import alone, examples, task_of
from tests.reference.kronecker import input_covariance, only_blocks, output_covariance, seen_by
from tests.reference.toys import Pictures, PictureTask, network, pictures, plain_loss


def assert_equal(sums, seen, count, rtol=1e-10):
    """Sums are those of `count` examples that a slow twin saw."""
    assert sums.examples == count
    for module, held in zip(sums.modules, seen, strict=True):
        name = module.name
        assert sums.positions[name] == len(held.inputs), name
        close = {"rtol": rtol, "atol": 1e-13}
        (inputs,), (outputs,) = sums.inputs[name], sums.outputs[name]
        torch.testing.assert_close(inputs / sums.positions[name], input_covariance(held), **close)
        torch.testing.assert_close(outputs / count, output_covariance(held, count), **close)


@pytest.mark.parametrize(
    ("family", "include", "bias"),
    [
        ("llama", ("*",), False),
        ("gptneox", ("*",), True),
        ("gpt2", ("*",), False),
        ("gpt2", ("*",), True),
        ("qwen2", ("*",), True),
        ("bert", ("*",), True),
        ("lora", ("*",), False),
        ("llama", ("lm_head", "*embed_tokens"), False),
        ("qwen2", ("lm_head",), False),
    ],
)
def test_covariances_equal_the_slow_twins_for_padded_batches(tiny_model, ragged_batch, family, include, bias):
    model, task = tiny_model(family), task_of(family)
    layers = tracked_layers(model, LayerSettings(include=include, bias=bias))
    fast = covariances(model, layers, task.example_loss, [ragged_batch])
    slow = seen_by(model, layers, plain_loss, examples(ragged_batch))
    assert_equal(fast, slow, 4)


def test_the_twins_positions_add_up_to_ordinary_weight_gradients(tiny_model, ragged_batch):
    cases = [
        (tiny_model("gpt2"), LayerSettings(bias=True), plain_loss, examples(ragged_batch)),
        (Pictures(), LayerSettings(bias=True), PictureTask().example_loss, one_by_one(pictures())),
    ]
    for model, settings, measure, single in cases:
        layers = tracked_layers(model, settings)
        slow = seen_by(model, layers, measure, single)
        for layer, held, whole in zip(layers, slow, gradients(model, layers, measure, single), strict=True):
            summed = whole.sum(0).reshape(layer.outputs, layer.inputs)
            torch.testing.assert_close(held.grads.T @ held.inputs, summed, rtol=1e-9, atol=1e-12)


def one_by_one(batch):
    images, labels = batch
    return [(images[n : n + 1], labels[n : n + 1]) for n in range(len(images))]


@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_and_a_layer_used_twice_equal_the_slow_twins(bias):
    model, measure = Pictures(), PictureTask().example_loss
    layers = tracked_layers(model, LayerSettings(bias=bias))
    fast = covariances(model, layers, measure, [pictures()])
    assert_equal(fast, seen_by(model, layers, measure, one_by_one(pictures())), 5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_every_position_once(tiny_model, ragged_batch, reentrant):
    model = tiny_model("llama")
    layers = tracked_layers(model, LayerSettings(include=("*", "lm_head")))
    slow = seen_by(model, layers, plain_loss, examples(ragged_batch))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    for block in model.model.layers:
        block.training = True
    assert_equal(covariances(model, layers, CausalLM().example_loss, [ragged_batch]), slow, 4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batch_size_and_padding_change_nothing(tiny_model, ragged_batch, family):
    model, task = tiny_model(family), CausalLM()
    layers = tracked_layers(model)
    padded = replace(
        ragged_batch,
        input_ids=nn.functional.pad(ragged_batch.input_ids, (0, 9), value=1),
        attention_mask=nn.functional.pad(ragged_batch.attention_mask, (0, 9)),
        labels=nn.functional.pad(ragged_batch.labels, (0, 9), value=-100),
    )
    together = covariances(model, layers, task.example_loss, [ragged_batch])
    for others in (examples(ragged_batch), [padded]):
        found = covariances(model, layers, task.example_loss, others)
        assert found.positions == together.positions
        for name in found.positions:
            torch.testing.assert_close(found.inputs[name], together.inputs[name], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found.outputs[name], together.outputs[name], rtol=1e-10, atol=1e-12)


def test_the_chunks_of_a_tracked_unembedding_are_masked_like_the_whole(tiny_model, ragged_batch, monkeypatch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LayerSettings(include=("lm_head",)))
    monkeypatch.setattr("influence.model.token_likelihood.LOGIT_BYTES", {"cpu": 4 * 300 * 4 * 3, "cuda": 1})
    in_three_positions = covariances(model, layers, CausalLM().example_loss, [ragged_batch])
    assert_equal(in_three_positions, seen_by(model, layers, plain_loss, examples(ragged_batch)), 4)


def test_partial_sums_merge_to_the_whole_and_stay_as_they_were(tiny_model, ragged_batch):
    model, measure = tiny_model("gptneox"), CausalLM().example_loss
    layers = tracked_layers(model)
    single = examples(ragged_batch)
    left, right = (covariances(model, layers, measure, part) for part in (single[:1], single[1:]))
    kept = {name: tensor.clone() for name, tensor in right.tensors().items()}
    merged = CovarianceSums(widths_of(layers), FactorSettings())
    merged.merge(left)
    merged.merge(right)
    whole = covariances(model, layers, measure, single)
    assert merged.examples == whole.examples
    assert merged.positions == whole.positions
    for name in whole.positions:
        torch.testing.assert_close(merged.inputs[name], whole.inputs[name], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(merged.outputs[name], whole.outputs[name], rtol=1e-12, atol=1e-14)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in right.tensors().items())


def test_sums_survive_being_written_as_tensors_bit_for_bit(tiny_model, ragged_batch):
    model = tiny_model("gpt2")
    layers = tracked_layers(model)
    settings = FactorSettings(width_limit=20, blocks=5)
    sums = covariances(model, layers, CausalLM().example_loss, [ragged_batch], settings)
    again = CovarianceSums.from_tensors(widths_of(layers), settings, sums.tensors())
    assert (again.examples, again.positions) == (sums.examples, sums.positions)
    assert again.tensors().keys() == sums.tensors().keys()
    assert all(torch.equal(tensor, sums.tensors()[name]) for name, tensor in again.tensors().items())
    assert [len(blocks) for blocks in again.inputs.values()] == [len(blocks) for blocks in sums.inputs.values()]


def test_a_written_partial_without_rows_merges_as_nothing(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model)
    whole = covariances(model, layers, CausalLM().example_loss, [ragged_batch])
    written = CovarianceSums(widths_of(layers), FactorSettings()).tensors()
    empty = CovarianceSums.from_tensors(widths_of(layers), FactorSettings(), written)
    kept = whole.tensors()
    whole.merge(empty)
    empty.merge(whole)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in empty.tensors().items())


def test_a_wide_side_is_the_twins_with_zeros_between_its_blocks(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("*.0.mlp.*",)))
    settings = FactorSettings(width_limit=24, blocks=3)
    sums = covariances(model, layers, measure, [ragged_batch], settings)
    for layer, held in zip(layers, seen_by(model, layers, plain_loss, examples(ragged_batch)), strict=True):
        for found, count, twin, width in (
            (sums.inputs[layer.name], sums.positions[layer.name], input_covariance(held), layer.inputs),
            (sums.outputs[layer.name], 4, output_covariance(held, 4), layer.outputs),
        ):
            cut = 3 if width > 24 else 1
            assert [len(block) for block in found] == ([11, 11, 10] if width > 24 else [24])
            torch.testing.assert_close(torch.block_diag(*found) / count, only_blocks(twin, cut), rtol=1e-10, atol=1e-13)


def test_a_side_that_is_too_wide_is_refused_by_name_before_anything_runs(tiny_model):
    layers = tracked_layers(tiny_model("llama"))
    with pytest.raises(CurvatureError, match=r"layers\.0\.mlp\.gate_proj has 32 outputs.*into 2 blocks"):
        CovarianceFit(tiny_model("llama"), layers, FactorSettings(width_limit=24))
    with pytest.raises(CurvatureError, match=r"32 outputs.*into 4 blocks"):
        CovarianceFit(tiny_model("llama"), layers[4:], FactorSettings(width_limit=8, blocks=3))


@pytest.mark.parametrize("limit", range(1, 34))
def test_as_many_blocks_as_the_refusal_says_are_enough(limit):
    with pytest.raises(CurvatureError, match="blocks") as refused:
        FactorSettings(width_limit=limit).cut("layer", "inputs", 37)
    blocks = int(str(refused.value).split("into ")[1].split()[0])
    cut = FactorSettings(width_limit=limit, blocks=blocks).cut("layer", "inputs", 37)
    assert max(part.stop - part.start for part in cut) <= limit
    assert [part.start for part in cut[1:]] == [part.stop for part in cut[:-1]]
    assert (cut[0].start, cut[-1].stop) == (0, 37)


def test_what_is_not_finite_is_refused_by_name_and_side(tiny_model, ragged_batch):
    model = tiny_model("llama")
    sums = covariances(model, tracked_layers(model), CausalLM().example_loss, [ragged_batch])
    sums.outputs["model.layers.1.mlp.up_proj"][0][2, 3] = float("nan")
    with pytest.raises(CurvatureError, match=r"output gradients of model\.layers\.1\.mlp\.up_proj is not finite"):
        decompose(sums)
    sums.inputs["model.layers.0.mlp.up_proj"][0][0, 0] = float("inf")
    with pytest.raises(CurvatureError, match=r"the inputs of model\.layers\.0\.mlp\.up_proj is not finite"):
        decompose(sums)


def test_no_rows_and_a_layer_outside_the_forward_pass_are_refused():
    model = network(3, 4, 2)
    model.append(nn.Linear(2, 2).double())
    layers = tracked_layers(model)
    with pytest.raises(CurvatureError, match="need rows; there are none"):
        decompose(CovarianceSums(widths_of(layers), FactorSettings()))
    batch = torch.randn(5, 3, dtype=torch.float64)
    sums = covariances(model, layers, lambda model, batch: model[:3](batch).sum(dim=1), [batch])
    with pytest.raises(CurvatureError, match="3 saw no token and no gradient"):
        decompose(sums)


def test_float32_models_are_summed_in_float32_and_bfloat16_ones_too(tiny_model, ragged_batch):
    exact = tiny_model("llama")
    names = covariances(exact, tracked_layers(exact), CausalLM().example_loss, [ragged_batch])
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        model = tiny_model("llama", dtype)
        sums = covariances(model, tracked_layers(model), CausalLM().example_loss, [ragged_batch])
        for name, (block,) in sums.inputs.items():
            assert block.dtype == torch.float32
            assert float((block - names.inputs[name][0]).norm() / names.inputs[name][0].norm()) < near


def test_examples_of_one_position_count_as_one_each():
    model, batch = network(3, 4, 2), torch.randn(6, 3, dtype=torch.float64)
    sums = covariances(model, tracked_layers(model), lambda model, batch: model(batch).sum(dim=1), [batch])
    assert sums.positions == {"0": 6, "2": 6}
    torch.testing.assert_close(sums.inputs["0"][0], batch.T @ batch)


def test_a_batch_of_one_is_the_covariance_of_one(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LayerSettings(include=("*.1.*",)))
    sums = covariances(model, layers, CausalLM().example_loss, [alone(ragged_batch, 2)])
    assert_equal(sums, seen_by(model, layers, plain_loss, [alone(ragged_batch, 2)]), 1)
