"""Exact inner products against dense dots of ordinary per-example gradients."""

import pytest
import torch
from torch import nn

from influence.errors import CaptureError
from influence.gradients import inner_products
from influence.gradients.inner_products import InnerProducts, compress
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM
from tests.gradients.conftest import examples, task_of
from tests.reference.microbatch import one_backward_per_example
from tests.reference.toys import Pictures, PictureTask, pictures, plain_loss

QUERIES = 3


def random_matrices(layers, queries=QUERIES):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(queries, layer.outputs, layer.inputs, dtype=torch.float64, generator=generator) for layer in layers
    ]


def dense_dots(model, layers, whole, measure, single, matrices):
    rows = one_backward_per_example(model, layers, whole, measure, single)
    return rows @ torch.cat([matrix.flatten(1) for matrix in matrices], dim=1).T


def products_of(model, layers, matrices, measure, batch):
    with InnerProducts(model, layers, matrices) as products:
        return products(measure, batch)


@pytest.mark.parametrize(
    ("family", "include", "bias"),
    [
        ("gpt2", ("*",), True),
        ("gptneox", ("*",), False),
        ("llama", ("*", "lm_head"), False),
        ("llama", ("*embed_tokens",), False),
        ("qwen2", ("*",), True),
        ("bert", ("*",), True),
        ("lora", ("*",), False),
    ],
)
def test_products_equal_dense_dots_of_one_backward_per_example(tiny_model, ragged_batch, whole, family, include, bias):
    model, task = tiny_model(family), task_of(family)
    layers = tracked_layers(model, LayerSettings(include=include, bias=bias))
    matrices = random_matrices(layers)
    found, losses = products_of(model, layers, matrices, task.example_loss, ragged_batch)
    expected = dense_dots(model, layers, whole, plain_loss, examples(ragged_batch), matrices)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(losses, plain_loss(model, ragged_batch))


def one_by_one(batch):
    images, labels = batch
    return [(images[n : n + 1], labels[n : n + 1]) for n in range(len(images))]


@pytest.mark.parametrize("rank", [None, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_and_a_layer_used_twice_equal_dense_dots(whole, bias, rank):
    model, measure = Pictures(), PictureTask().example_loss
    layers = tracked_layers(model, LayerSettings(bias=bias))
    matrices = random_matrices(layers)
    expected = dense_dots(model, layers, whole, measure, one_by_one(pictures()), matrices)
    given = matrices if rank is None else [compress(matrix, rank) for matrix in matrices]
    found, _ = products_of(model, layers, given, measure, pictures())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rank", [None, 32])
def test_gradient_checkpointing_changes_nothing(tiny_model, ragged_batch, reentrant, rank):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("*", "lm_head")))
    matrices = random_matrices(layers)
    given = matrices if rank is None else [compress(matrix, rank) for matrix in matrices]
    plain, _ = products_of(model, layers, matrices, measure, ragged_batch)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    for block in model.model.layers:
        block.training = True
    found, _ = products_of(model, layers, given, measure, ragged_batch)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9 * float(plain.abs().max()))


def test_few_gradients_at_once_are_as_good_as_many(tiny_model, ragged_batch, monkeypatch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    matrices = random_matrices(layers)
    many, _ = products_of(model, layers, matrices, measure, ragged_batch)
    monkeypatch.setattr(inner_products, "CHUNK_BYTES", 4 * 3 * 24 * 24)
    few, _ = products_of(model, layers, matrices, measure, ragged_batch)
    torch.testing.assert_close(few, many, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("rank", [24, 99])
def test_factors_of_full_rank_are_the_whole_matrices(tiny_model, ragged_batch, rank):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    matrices = random_matrices(layers)
    compressed = [compress(matrix, rank) for matrix in matrices]
    assert max(matrix.error for matrix in compressed) < 1e-12
    exact, _ = products_of(model, layers, matrices, measure, ragged_batch)
    found, _ = products_of(model, layers, compressed, measure, ragged_batch)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))


def test_some_matrices_may_be_whole_and_others_factors(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    matrices = random_matrices(layers)
    mixed = [compress(matrix, 99) if number % 2 else matrix for number, matrix in enumerate(matrices)]
    exact, _ = products_of(model, layers, matrices, measure, ragged_batch)
    for given in (mixed, mixed[::-1]):
        order = layers if given is mixed else layers[::-1]
        found, _ = products_of(model, order, given, measure, ragged_batch)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))


def test_truncation_gives_the_best_factors_and_says_what_it_left_out():
    matrices = torch.randn(4, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for rank in (1, 3, 8):
        held = compress(matrices, rank)
        assert held.left.shape == (4, 9, rank)
        assert held.right.shape == (4, 13, rank)
        rebuilt = torch.einsum("qor,qir->qoi", held.left, held.right)
        assert held.error == pytest.approx(float((matrices - rebuilt).norm() / matrices.norm()), rel=1e-12)
        # Eckart and Young: what is left are the singular values behind the first.
        left_out = torch.linalg.svdvals(matrices)[:, rank:].square().sum().sqrt() / matrices.norm()
        assert held.error == pytest.approx(float(left_out), rel=1e-12)
    assert compress(torch.zeros(2, 5, 4), 2).error == 0.0


def test_a_score_from_truncated_factors_errs_by_no_more_than_they_say(tiny_model, ragged_batch, whole):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("*.0.mlp.up_proj",)))
    matrices = random_matrices(layers, queries=1)
    lengths = one_backward_per_example(model, layers, whole, plain_loss, examples(ragged_batch)).norm(dim=1)
    exact, _ = products_of(model, layers, matrices, measure, ragged_batch)
    errors = []
    for rank in (1, 4, 12):
        compressed = [compress(matrices[0], rank)]
        found, _ = products_of(model, layers, compressed, measure, ragged_batch)
        error = (found - exact).abs().squeeze(1)
        assert (error <= compressed[0].error * float(matrices[0].norm()) * lengths * (1 + 1e-9)).all()
        assert error.max() > 0
        errors.append(compressed[0].error)
    assert errors == sorted(errors, reverse=True)


def test_scores_are_float32_for_a_narrower_model_and_near_the_exact_ones(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model)
    exact, _ = products_of(model, layers, random_matrices(layers), CausalLM().example_loss, ragged_batch)
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        narrow = tiny_model("llama", dtype)
        layers = tracked_layers(narrow)
        found, losses = products_of(narrow, layers, random_matrices(layers), CausalLM().example_loss, ragged_batch)
        assert found.dtype == losses.dtype == torch.float32
        assert float((found - exact).norm() / exact.norm()) < near


def test_batches_follow_one_another_without_a_trace(tiny_model, ragged_batch):
    model, task = tiny_model("llama"), CausalLM()
    layers = tracked_layers(model)
    matrices = random_matrices(layers)
    with InnerProducts(model, layers, matrices) as products:
        first, _ = products(task.example_loss, ragged_batch)

        def broken(model, batch):
            task.example_loss(model, batch)
            raise KeyError("mid-batch")

        with pytest.raises(KeyError):
            products(broken, ragged_batch)
        single = [products(task.example_loss, example)[0] for example in examples(ragged_batch)]
        again, _ = products(task.example_loss, ragged_batch)
    assert torch.equal(first, again)
    torch.testing.assert_close(torch.cat(single), first, rtol=1e-9, atol=1e-9 * float(first.abs().max()))
    assert all(torch.equal(held, given) for held, given in zip(matrices, random_matrices(layers), strict=True))


def test_matrices_for_another_number_of_layers_are_our_own_mistake(tiny_model):
    layers = tracked_layers(tiny_model("llama"))
    with pytest.raises(ValueError, match="shorter"):
        InnerProducts(tiny_model("llama"), layers, random_matrices(layers)[1:])


def test_outside_its_context_it_is_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    layers = tracked_layers(model)
    with pytest.raises(CaptureError, match="context manager"):
        InnerProducts(model, layers, random_matrices(layers))(lambda model, batch: model(batch), torch.ones(1, 3))
