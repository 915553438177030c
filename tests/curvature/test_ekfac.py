"""EK-FAC's eigenvalues against dense Fishers of ordinary per-example gradients, and every way they are summed."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from influence.curvature import ekfac
from influence.curvature.damping import Damping
from influence.curvature.ekfac import EigenvalueFit, EigenvalueSums
from influence.curvature.kfac import KroneckerCurvature, decompose, kfac_eigenvalues
from influence.errors import CurvatureError
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM
from tests.curvature.conftest import covariances, eigenbasis, gradients, squares
from tests.gradients.conftest import examples, task_of
from tests.reference.kronecker import (
    damped,
    dense_ekfac,
    dense_kfac,
    fisher,
    input_covariance,
    output_covariance,
    seen_by,
)
from tests.reference.toys import Pictures, PictureTask, network, pictures, plain_loss


def one_by_one(batch):
    images, labels = batch
    return [(images[n : n + 1], labels[n : n + 1]) for n in range(len(images))]


def rotated_squares(basis, layer, whole):
    """(1/N) Σ (Q_Sᵀ G Q_A)² from whole gradients [N, O·I], one after another."""
    outputs, inputs = basis.outputs.vectors[0], basis.inputs.vectors[0]
    turned = [outputs.T @ g.reshape(layer.outputs, layer.inputs) @ inputs for g in whole]
    return sum(g.square() for g in turned) / len(turned)


@pytest.mark.parametrize(
    ("family", "include", "bias"),
    [
        ("llama", ("*",), False),
        ("gptneox", ("*.0.*",), True),
        ("gpt2", ("*.1.*",), True),
        ("bert", ("*.0.*", "*classifier"), True),
        ("lora", ("*",), False),
        ("llama", ("lm_head",), False),
    ],
)
def test_eigenvalues_equal_squares_of_one_backward_per_example(tiny_model, ragged_batch, family, include, bias):
    model, task = tiny_model(family), task_of(family)
    layers = tracked_layers(model, LayerSettings(include=include, bias=bias))
    basis = eigenbasis(model, layers, task.example_loss, [ragged_batch])
    values = squares(model, layers, task.example_loss, [ragged_batch], basis).eigenvalues()
    slow = gradients(model, layers, plain_loss, examples(ragged_batch))
    for layer, found, whole in zip(layers, values, slow, strict=True):
        expected = rotated_squares(basis[layer.name], layer, whole)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_the_chunks_of_a_tracked_unembedding_are_squared_once_together(tiny_model, ragged_batch, monkeypatch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("lm_head",)))
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    monkeypatch.setattr("influence.model.token_likelihood.LOGIT_BYTES", {"cpu": 4 * 300 * 4 * 3, "cuda": 1})
    found = squares(model, layers, measure, [ragged_batch], basis).eigenvalues()[0]
    whole = gradients(model, layers, plain_loss, examples(ragged_batch))[0]
    torch.testing.assert_close(found, rotated_squares(basis["lm_head"], layers[0], whole), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(tiny_model, ragged_batch, reentrant):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    plain = squares(model, layers, measure, [ragged_batch], basis)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    for block in model.model.layers:
        block.training = True
    for task in (CausalLM(), CausalLM()):
        found = squares(model, layers, task.example_loss, [ragged_batch, ragged_batch], basis)
        assert found.examples == 8
        for name in plain.sums:
            torch.testing.assert_close(found.sums[name], 2 * plain.sums[name], rtol=1e-10, atol=1e-13)


def test_a_task_that_first_runs_the_model_without_gradients_loses_no_batch(tiny_model, ragged_batch):
    model, known = tiny_model("llama"), CausalLM()
    layers = tracked_layers(model)
    basis = eigenbasis(model, layers, known.example_loss, [ragged_batch])
    # A fresh task looks at the model under no_grad within its first loss.
    fresh = squares(model, layers, CausalLM().example_loss, examples(ragged_batch), basis)
    again = squares(model, layers, known.example_loss, examples(ragged_batch), basis)
    for name in again.sums:
        torch.testing.assert_close(fresh.sums[name], again.sums[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_used_twice_is_squared_once_after_both_uses(bias):
    model, measure = Pictures(), PictureTask().example_loss
    layers = tracked_layers(model, LayerSettings(bias=bias))
    basis = eigenbasis(model, layers, measure, [pictures()])
    values = squares(model, layers, measure, [pictures()], basis).eigenvalues()
    slow = gradients(model, layers, measure, one_by_one(pictures()))
    for layer, found, whole in zip(layers, values, slow, strict=True):
        torch.testing.assert_close(found, rotated_squares(basis[layer.name], layer, whole), rtol=1e-9, atol=1e-13)


def test_a_use_that_never_reaches_the_loss_leaves_nothing_behind():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.double()

        def forward(self, x):
            self.aside = self.layer(2 * x)
            return self.layer(x)

    model, x = Aside(), torch.randn(7, 3, dtype=torch.float64)
    layers = tracked_layers(model)

    def measure(model, x):
        return model(x).square().sum(dim=1)

    basis = eigenbasis(model, layers, measure, [x])
    found = squares(model, layers, measure, [x[:4], x[4:]], basis)
    assert found.examples == 7
    whole = gradients(model, layers, measure, list(x.split(1)))[0]
    expected = rotated_squares(basis["layer"], layers[0], whole)
    torch.testing.assert_close(found.eigenvalues()[0], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_of_ones_own_changes_no_factor(reentrant):
    model, x = network(3, 4, 4, 2, activation=nn.Tanh, bias=True), torch.randn(7, 3, dtype=torch.float64)
    model[4] = model[2]
    model.append(nn.Tanh())
    layers = tracked_layers(model, LayerSettings(bias=True))
    assert len(layers) == 2

    def plain(model, x):
        return model(x).square().sum(dim=1)

    def rerun(model, x):
        first = model[:2](x.clone().requires_grad_())
        middle = checkpoint(model[2:4], first, use_reentrant=reentrant)
        return checkpoint(model[4:], middle, use_reentrant=reentrant).square().sum(dim=1)

    expected = covariances(model, layers, plain, [x, x[:3]])
    found = covariances(model, layers, rerun, [x, x[:3]])
    assert found.positions == expected.positions == {"0": 10, "2": 20}
    for name in expected.positions:
        torch.testing.assert_close(found.inputs[name], expected.inputs[name])
        torch.testing.assert_close(found.outputs[name], expected.outputs[name])
    basis = decompose(expected, torch.float64)
    once, again = (squares(model, layers, measure, [x, x[:3]], basis) for measure in (plain, rerun))
    for name in once.sums:
        torch.testing.assert_close(again.sums[name], once.sums[name])


def test_factors_turned_before_their_product_equal_the_product_turned_after(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LayerSettings(include=("*.0.mlp.up_proj",)))
    basis = eigenbasis(model, layers, CausalLM().example_loss, [ragged_batch])
    sink = ekfac._Squares(layers[0], basis[layers[0].name], EigenvalueSums((layers[0].name,)))
    outputs, inputs = layers[0].outputs, layers[0].inputs
    break_even = outputs * inputs * (outputs + inputs) / (outputs**2 + inputs**2)
    for positions in (1, int(break_even), int(break_even) + 1, 60):
        grads = torch.randn(3, positions, outputs, dtype=torch.float64)
        kept = torch.randn(3, positions, inputs, dtype=torch.float64)
        after = basis.modules[0].rotate(torch.einsum("nso,nsi->noi", grads, kept))
        torch.testing.assert_close(sink._rotated(grads, kept), after, rtol=1e-10, atol=1e-12)
        turned = torch.bmm(basis.modules[0].outputs.rotate(grads).transpose(1, 2), basis.modules[0].inputs.rotate(kept))
        torch.testing.assert_close(turned, after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("room", [1, 3 * 8 * 24 * 32])
def test_few_gradients_at_once_are_as_good_as_many(tiny_model, ragged_batch, monkeypatch, room):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    many = squares(model, layers, measure, [ragged_batch], basis)
    monkeypatch.setattr(ekfac, "CHUNK_BYTES", room)
    few = squares(model, layers, measure, [ragged_batch], basis)
    for name in many.sums:
        torch.testing.assert_close(few.sums[name], many.sums[name], rtol=1e-12, atol=0)


def test_eigenvalues_add_up_to_the_mean_squared_norm_of_a_gradient(tiny_model, ragged_batch):
    model, measure = tiny_model("gpt2"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(bias=True))
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    values = squares(model, layers, measure, [ragged_batch], basis).eigenvalues()
    for found, whole in zip(values, gradients(model, layers, plain_loss, examples(ragged_batch)), strict=True):
        torch.testing.assert_close(found.sum(), whole.square().sum(1).mean(), rtol=1e-10, atol=0)


def test_eigenvalues_are_the_diagonal_of_the_dense_fisher_in_the_kronecker_eigenbasis(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("*.k_proj",)))
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    values = squares(model, layers, measure, [ragged_batch], basis).eigenvalues()
    slow = gradients(model, layers, plain_loss, examples(ragged_batch))
    for module, found, whole in zip(basis.modules, values, slow, strict=True):
        dense = torch.kron(module.outputs.vectors[0], module.inputs.vectors[0])
        diagonal = (dense.T @ fisher(whole) @ dense).diagonal()
        scale = float(diagonal.max())
        torch.testing.assert_close(found.flatten(), diagonal, rtol=1e-9, atol=1e-12 * scale)


def test_no_diagonal_in_that_basis_is_nearer_to_the_fisher_than_ekfacs(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("*.k_proj", "*.v_proj")))
    seen = seen_by(model, layers, plain_loss, examples(ragged_batch))
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    values = squares(model, layers, measure, [ragged_batch], basis).eigenvalues()
    slow = gradients(model, layers, plain_loss, examples(ragged_batch))
    for module, found, held, whole in zip(basis.modules, values, seen, slow, strict=True):
        true = fisher(whole)
        dense = torch.kron(module.outputs.vectors[0], module.inputs.vectors[0])
        ours = dense @ torch.diag(found.flatten()) @ dense.T
        torch.testing.assert_close(
            ours,
            dense_ekfac(input_covariance(held), output_covariance(held, 4), whole),
            rtol=1e-8,
            atol=1e-10 * float(ours.abs().max()),
        )
        kfac = dense_kfac(input_covariance(held), output_covariance(held, 4))
        assert float((true - ours).norm()) < float((true - kfac).norm())
        for _ in range(3):
            other = dense @ torch.diag(found.flatten() * (1 + 0.1 * torch.randn(found.numel()))) @ dense.T
            assert float((true - ours).norm()) < float((true - other).norm())


def test_the_inverse_is_that_of_the_dense_matrix(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("*.k_proj",)))
    seen = seen_by(model, layers, plain_loss, examples(ragged_batch))
    slow = gradients(model, layers, plain_loss, examples(ragged_batch))
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    values = squares(model, layers, measure, [ragged_batch], basis).eigenvalues()
    curvature = KroneckerCurvature.prepare(basis, values, Damping(value=0.3))
    for number, (layer, held, whole) in enumerate(zip(layers, seen, slow, strict=True)):
        dense = damped(dense_ekfac(input_covariance(held), output_covariance(held, 4), whole), 0.3)
        given = torch.randn(layer.outputs, layer.inputs, dtype=torch.float64)
        expected = torch.linalg.solve(dense, given.flatten()).reshape(given.shape)
        found = curvature.apply(number, given)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))
        halves = curvature.apply(number, curvature.apply(number, given, -0.5), -0.5)
        torch.testing.assert_close(halves, found, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_without_damping_it_inverts_exactly_where_no_eigenvalue_is_zero():
    model, batch = network(3, 2), torch.randn(30, 3, dtype=torch.float64)
    layers = tracked_layers(model)

    def measure(model, batch):
        return (model(batch) - batch[:, :2].sin()).square().sum(dim=1)

    basis = eigenbasis(model, layers, measure, [batch])
    values = squares(model, layers, measure, [batch], basis).eigenvalues()
    curvature = KroneckerCurvature.prepare(basis, values, Damping(value=0))
    held = seen_by(model, layers, measure, list(batch.split(1)))[0]
    whole = gradients(model, layers, measure, list(batch.split(1)))[0]
    dense = dense_ekfac(input_covariance(held), output_covariance(held, 30), whole)
    given = torch.randn(2, 3, dtype=torch.float64)
    expected = torch.linalg.solve(dense, given.flatten()).reshape(2, 3)
    torch.testing.assert_close(curvature.apply(0, given), expected, rtol=1e-9, atol=1e-10)


def test_partial_sums_merge_to_the_whole_and_survive_being_written(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    names = tuple(layer.name for layer in layers)
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    single = examples(ragged_batch)
    parts = [squares(model, layers, measure, part, basis) for part in (single[:1], single[1:])]
    kept = [{name: tensor.clone() for name, tensor in part.tensors().items()} for part in parts]
    merged = EigenvalueSums(names)
    for part in parts:
        again = EigenvalueSums.from_tensors(names, part.tensors())
        assert again.examples == part.examples
        merged.merge(again)
    merged.merge(EigenvalueSums.from_tensors(names, EigenvalueSums(names).tensors()))
    whole = squares(model, layers, measure, [ragged_batch], basis)
    assert merged.examples == 4
    for found, expected in zip(merged.eigenvalues(), whole.eigenvalues(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    for part, before in zip(parts, kept, strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in part.tensors().items())


def test_kfacs_eigenvalues_have_the_scale_of_ekfacs(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    values = squares(model, layers, measure, [ragged_batch], basis).eigenvalues()
    for kfac, exact in zip(kfac_eigenvalues(basis), values, strict=True):
        assert 0.1 < float(kfac.sum() / exact.sum()) < 10


def test_no_rows_and_a_layer_outside_the_forward_pass_are_refused(tiny_model, ragged_batch):
    with pytest.raises(CurvatureError, match="need rows; there are none"):
        EigenvalueSums(("a",)).eigenvalues()
    with pytest.raises(CurvatureError, match="a saw no gradient"):
        EigenvalueSums(("a",), examples=3).eigenvalues()


def test_a_gradient_that_is_not_finite_is_refused_by_name(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model)
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    sums = squares(model, layers, lambda model, batch: measure(model, batch) * torch.inf, [ragged_batch], basis)
    with pytest.raises(CurvatureError, match=r"The eigenvalues of model\.layers\.0\.self_attn\.q_proj are not finite"):
        KroneckerCurvature.prepare(basis, sums.eigenvalues(), Damping())


def test_factors_of_another_model_are_refused_before_anything_runs(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LayerSettings(include=("*.k_proj",)))
    basis = eigenbasis(model, layers, CausalLM().example_loss, [ragged_batch])
    with pytest.raises(CurvatureError, match=r"no factors for model\.layers\.0\.self_attn\.q_proj"):
        EigenvalueFit(model, tracked_layers(model), basis)
