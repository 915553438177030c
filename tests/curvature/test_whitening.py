"""K-FAC folded into the projection, and projections on leading eigenvectors."""

import math
from dataclasses import replace

import pytest
import torch

from influence.curvature.covariance import FactorSettings
from influence.curvature.kfac import decompose
from influence.curvature.whitening import LeadingEigenvectors, Whitening, bounded_share, fold_for
from influence.errors import CurvatureError, ProjectionError
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import LayerSettings, tracked_layers
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM
from tests.curvature.conftest import covariances, eigenbasis, gradients
from tests.gradients.conftest import alone, examples
from tests.reference.kronecker import damped, input_covariance, output_covariance, scores, seen_by
from tests.reference.microbatch import one_backward_per_example
from tests.reference.toys import SquaredError, network, plain_loss

KEYS = LayerSettings(include=("*.k_proj",))
EMPIRICAL = {"labels": "empirical"}


def test_as_wide_as_the_layers_it_is_kfac_with_factored_damping_exactly(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, KEYS)
    basis = eigenbasis(model, layers, CausalLM().example_loss, [ragged_batch])
    whole = Projection(ProjectionSettings(p=24, q=24, rows="whitened"), Whitening(basis, 0.3))
    rows = gradients(model, layers, plain_loss, examples(ragged_batch))
    seen = seen_by(model, layers, plain_loss, examples(ragged_batch))
    for layer, held, grads in zip(layers, seen, rows, strict=True):
        sides = whole.sides(layer.name, layer.inputs, layer.outputs, torch.float64)
        folded = torch.einsum(
            "qo,noi,pi->nqp", sides.outputs, grads.unflatten(1, (layer.outputs, layer.inputs)), sides.inputs
        ).flatten(1)
        dense = torch.kron(damped(output_covariance(held, 4), 0.3), damped(input_covariance(held), 0.3))
        expected = grads @ torch.linalg.solve(dense, grads.T)
        torch.testing.assert_close(folded @ folded.T, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_recipe_as_wide_as_the_layers_is_kfac_over_n(tiny_model, ragged_batch, family):
    model = tiny_model(family)
    settings = LayerSettings(include=("*.0.*k_proj", "*.0.*c_attn") if family == "llama" else ("*.0.attn.c_proj",))
    settings = LayerSettings(include=settings.include[:1], bias=family == "gpt2")
    layers = tracked_layers(model, settings)
    method = recipe("whitened", projection={"p": 64, "q": 64}, damping=0.3, factors=EMPIRICAL)
    found = pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], method, settings)
    rows = torch.cat(gradients(model, layers, plain_loss, examples(ragged_batch)), dim=1)
    blocks = [
        torch.kron(damped(output_covariance(held, 4), 0.3), damped(input_covariance(held), 0.3))
        for held in seen_by(model, layers, plain_loss, examples(ragged_batch))
    ]
    expected = scores(blocks, rows, rows)
    # The matrices are kept in float32, which is where these digits end.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_the_mean_over_many_draws_is_kfac_with_factored_damping(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LayerSettings(include=("*.0.self_attn.k_proj",)))
    basis = eigenbasis(model, layers, CausalLM().example_loss, [ragged_batch])
    grads = gradients(model, layers, plain_loss, examples(ragged_batch))[0].unflatten(1, (12, 24))
    held = seen_by(model, layers, plain_loss, examples(ragged_batch))[0]
    dense = torch.kron(damped(output_covariance(held, 4), 0.2), damped(input_covariance(held), 0.2))
    exact = grads.flatten(1) @ torch.linalg.solve(dense, grads.flatten(1).T)
    lengths = exact.diagonal().sqrt()
    total, draws = torch.zeros(4, 4, dtype=torch.float64), 600
    for seed in range(draws):
        settings = ProjectionSettings(p=6, q=6, seed=seed, rows="whitened")
        sides = Projection(settings, Whitening(basis, 0.2)).sides(layers[0].name, 24, 12, torch.float64)
        rows = torch.einsum("qo,noi,pi->nqp", sides.outputs, grads, sides.inputs).flatten(1)
        total += rows @ rows.T
    # One draw errs by up to 4/√(PQ) = 0.7 of the product of the two lengths.
    error = (total / draws - exact).abs() / lengths[:, None] / lengths[None]
    assert float(error.max()) < 0.05


def test_a_bounded_damping_is_the_least_with_as_many_effective_dimensions_as_the_rows_have_nats(
    tiny_model, ragged_batch
):
    model = tiny_model("llama")
    layers = tracked_layers(model, KEYS)
    basis = eigenbasis(model, layers, CausalLM().example_loss, [ragged_batch])
    seen = seen_by(model, layers, plain_loss, examples(ragged_batch))
    factors = [(output_covariance(held, 4), input_covariance(held)) for held in seen]
    loss = float(CausalLM().example_loss(model, ragged_batch).detach().mean())
    assert basis.loss == pytest.approx(loss, rel=1e-12)

    def dimensions(share):
        """Σ Λ/Λ′ as a trace of dense matrices."""
        return sum(
            float(torch.linalg.solve(torch.kron(damped(s, share), damped(a, share)), torch.kron(s, a)).trace())
            for s, a in factors
        )

    for rows in (1, 2, 3):
        share = bounded_share(basis, rows)
        assert 0.01 < share < 100
        assert dimensions(share) == pytest.approx(rows * loss, rel=1e-9)
    assert bounded_share(basis, 1_000) == 0.01
    assert bounded_share(replace(basis, loss=0.0), 1_000) == 100.0


def test_where_the_curvature_is_a_kronecker_product_a_row_scores_its_own_loss_with_itself():
    """One layer, one position and one row: Σ Λ/Λ′ is what the row's copy does to the row."""

    class OwnLoss(SquaredError):
        def measurement(self, model, batch):
            return -self.example_loss(model, batch)

    model, task = network(6, 4), OwnLoss()
    inputs = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).double()
    row = (inputs, model(inputs).detach() + 0.3)
    found = pairwise(model, task, [row], [row], recipe("whitened", factors=EMPIRICAL))
    assert found.item() == pytest.approx(4 * 0.3**2, rel=1e-6)


def test_the_default_damping_is_the_bounded_one(tiny_model, ragged_batch):
    model = tiny_model("llama")
    basis = eigenbasis(model, tracked_layers(model), CausalLM().example_loss, [ragged_batch])
    share = bounded_share(basis, 4)
    assert share > 0.01
    found, explicit = (
        pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], recipe("whitened", factors=EMPIRICAL, **damping))
        for damping in ({}, {"damping": share})
    )
    torch.testing.assert_close(found, explicit, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(("loss", "message"), [(-1.5, r"it is -1\.5"), (math.nan, "earlier version")])
def test_a_bounded_damping_of_an_unknown_or_negative_loss_is_refused(tiny_model, ragged_batch, loss, message):
    model = tiny_model("llama")
    basis = eigenbasis(model, tracked_layers(model, KEYS), CausalLM().example_loss, [ragged_batch])
    with pytest.raises(CurvatureError, match=rf"{message}.*recipe\.projection\.damping"):
        fold_for(ProjectionSettings(rows="whitened"), replace(basis, loss=loss), 4)


@pytest.mark.parametrize("rows", ["whitened", "eigenvectors"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_captured_row_is_the_whole_gradient_between_the_folded_matrices(tiny_model, ragged_batch, rows, family):
    model, measure = tiny_model(family), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(bias=True))
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    settings = ProjectionSettings(p=5, q=30, seed=3, rows=rows)
    projection = Projection(settings, fold_for(settings, basis, 4))
    with Capture(model, layers, projection) as capture:
        found, _ = capture(measure, ragged_batch)
    slow = one_backward_per_example(model, layers, projection, plain_loss, examples(ragged_batch))
    torch.testing.assert_close(found, slow, rtol=1e-8, atol=1e-10 * float(slow.abs().max()))


def test_leading_eigenvectors_are_the_rows_and_the_largest_comes_first(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, KEYS)
    basis = eigenbasis(model, layers, measure, [ragged_batch])
    settings = ProjectionSettings(p=5, q=3, rows="eigenvectors")
    projection = Projection(settings, LeadingEigenvectors(basis))
    for layer, held in zip(layers, seen_by(model, layers, plain_loss, examples(ragged_batch)), strict=True):
        sides = projection.sides(layer.name, layer.inputs, layer.outputs, torch.float64)
        for rows, matrix in (
            (sides.inputs, input_covariance(held)),
            (sides.outputs, output_covariance(held, 4)),
        ):
            top = torch.linalg.eigvalsh(matrix).flip(0)[: len(rows)]
            close = {"rtol": 1e-9, "atol": 1e-10 * float(top[0])}
            torch.testing.assert_close(rows @ matrix @ rows.T, torch.diag(top), **close)
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))


def test_leading_eigenvectors_of_blocks_are_the_largest_of_all_blocks(tiny_model, ragged_batch):
    model, measure = tiny_model("llama"), CausalLM().example_loss
    layers = tracked_layers(model, LayerSettings(include=("*.0.mlp.down_proj",)))
    settings = FactorSettings(width_limit=24, blocks=4)
    sums = covariances(model, layers, measure, [ragged_batch], settings)
    basis = decompose(sums, torch.float64)
    dense = torch.block_diag(*sums.inputs[layers[0].name]) / sums.positions[layers[0].name]
    rows = LeadingEigenvectors(basis).fold(layers[0].name, "inputs", torch.zeros(6, 32))
    top = torch.linalg.eigvalsh(dense).flip(0)[:6]
    torch.testing.assert_close(rows @ dense @ rows.T, torch.diag(top), rtol=1e-9, atol=1e-10 * float(top[0]))
    half = Whitening(basis, 0.1).fold(layers[0].name, "inputs", torch.eye(32))
    torch.testing.assert_close(half @ damped(dense, 0.1) @ half.T, torch.eye(32, dtype=torch.float64))


@pytest.mark.parametrize("rows", ["whitened", "eigenvectors"])
def test_without_factors_it_is_refused_and_factors_without_need_too(rows, tiny_model, ragged_batch):
    with pytest.raises(ProjectionError, match="no Kronecker factors were given"):
        Projection(ProjectionSettings(rows=rows))
    model = tiny_model("llama")
    basis = eigenbasis(model, tracked_layers(model, KEYS), CausalLM().example_loss, [ragged_batch])
    with pytest.raises(ProjectionError, match="Kronecker factors were given"):
        Projection(ProjectionSettings(), Whitening(basis, 0.1))


def test_a_layer_without_factors_is_refused_by_name(tiny_model, ragged_batch):
    model = tiny_model("llama")
    basis = eigenbasis(model, tracked_layers(model, KEYS), CausalLM().example_loss, [ragged_batch])
    projection = Projection(ProjectionSettings(p=4, q=4, rows="whitened"), Whitening(basis, 0.1))
    with pytest.raises(CurvatureError, match=r"no factors for model\.layers\.0\.mlp\.up_proj"):
        projection.sides("model.layers.0.mlp.up_proj", 24, 32)


def test_a_singular_factor_without_damping_is_refused_by_name_and_side(tiny_model, ragged_batch):
    model, short = tiny_model("llama"), alone(ragged_batch, 1)
    method = recipe("whitened", damping=0, factors=EMPIRICAL)
    with pytest.raises(
        CurvatureError, match=r"inputs of model\.layers\.0\.self_attn\.q_proj is singular.*recipe\.projection\.damping"
    ):
        pairwise(model, CausalLM(), [short], [short], method)


def test_without_damping_a_full_rank_factor_is_inverted_exactly(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LayerSettings(include=("*.0.self_attn.k_proj",)))
    sums = covariances(model, layers, CausalLM().example_loss, [ragged_batch])
    name = layers[0].name
    half = Whitening(decompose(sums, torch.float64), 0.0).fold(name, "inputs", torch.eye(24))
    inverse = torch.linalg.inv(sums.inputs[name][0] / sums.positions[name])
    torch.testing.assert_close(half @ half.T, inverse, rtol=1e-8, atol=1e-8 * float(inverse.abs().max()))


def test_folding_again_gives_the_same_bits(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, KEYS)
    basis = eigenbasis(model, layers, CausalLM().example_loss, [ragged_batch])
    settings = ProjectionSettings(p=4, q=4, rows="whitened")
    projection = Projection(settings, fold_for(settings, basis, 4))
    first, second = (projection.sides(layers[0].name, 24, 12) for _ in range(2))
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.outputs, second.outputs)
