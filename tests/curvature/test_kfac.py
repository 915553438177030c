"""K-FAC against dense matrices: its eigenbasis, its inverse, its identities, and what it refuses."""

import pytest
import torch
from torch import nn

from influence.curvature.covariance import CovarianceFit, CovarianceSums, FactorSettings, ModuleWidths, widths_of
from influence.curvature.damping import Damping
from influence.curvature.ekfac import EigenvalueFit
from influence.curvature.kfac import Eigenbasis, KroneckerCurvature, decompose, kfac_eigenvalues
from influence.errors import CurvatureError
from influence.model.layers import LayerSettings, tracked_layers
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM
from tests.curvature.conftest import DEFAULT, covariances, eigenbasis, squares
from tests.gradients.conftest import alone, examples
from tests.reference.kronecker import (
    damped,
    dense_kfac,
    input_covariance,
    only_blocks,
    output_covariance,
    seen_by,
)
from tests.reference.toys import Pictures, PictureTask, SquaredError, network, pictures, plain_loss, sign_patterns

LAYER = LayerSettings(include=("*.0.self_attn.k_proj", "*.1.self_attn.o_proj"))


def fitted(model, batch, layers, damping=Damping(), settings=DEFAULT):
    sums = covariances(model, layers, CausalLM().example_loss, [batch], settings)
    basis = decompose(sums, torch.float64)
    return KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), damping)


def random_sums(rows=40, settings=DEFAULT):
    """Covariances of full rank."""
    modules = (ModuleWidths("a", 7, 4), ModuleWidths("b", 3, 6))
    sums = CovarianceSums(modules, settings, examples=rows)
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        sums.positions[module.name] = 2 * rows
        for into, side, width in ((sums.inputs, "inputs", module.inputs), (sums.outputs, "outputs", module.outputs)):
            vectors = torch.randn(2 * rows, width, dtype=torch.float64, generator=generator)
            parts = settings.cut(module.name, side, width)
            into[module.name] = [vectors[:, part].T @ vectors[:, part] for part in parts]
    return sums


@pytest.mark.parametrize("power", [-1.0, -0.5, 1.0])
@pytest.mark.parametrize("blocks", [1, 3])
def test_applying_it_is_multiplying_by_a_power_of_the_dense_kronecker_product(power, blocks):
    whole = random_sums()
    settings = FactorSettings(width_limit=3, blocks=blocks) if blocks > 1 else DEFAULT
    basis = decompose(random_sums(settings=settings), torch.float64)
    curvature = KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), Damping(value=0.3))
    for number, module in enumerate(whole.modules):
        inputs, outputs = whole.inputs[module.name][0] / 80, whole.outputs[module.name][0] / 40
        inputs = only_blocks(inputs, blocks) if module.inputs > 3 else inputs
        outputs = only_blocks(outputs, blocks) if module.outputs > 3 else outputs
        values, vectors = torch.linalg.eigh(damped(dense_kfac(inputs, outputs), 0.3))
        dense = vectors @ torch.diag(values**power) @ vectors.T
        given = torch.randn(2, 3, module.outputs, module.inputs, dtype=torch.float64)
        found = curvature.apply(number, given, power)
        assert found.shape == given.shape
        torch.testing.assert_close(found.flatten(2), given.flatten(2) @ dense, rtol=1e-9, atol=1e-9)


def test_a_language_models_inverse_is_that_of_the_slow_twins_dense_kronecker_product(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LAYER)
    curvature = fitted(model, ragged_batch, layers)
    seen = seen_by(model, layers, plain_loss, examples(ragged_batch))
    for number, (layer, held) in enumerate(zip(layers, seen, strict=True)):
        dense = damped(dense_kfac(input_covariance(held), output_covariance(held, 4)), 0.1)
        given = torch.randn(layer.outputs, layer.inputs, dtype=torch.float64)
        expected = torch.linalg.solve(dense, given.flatten()).reshape(given.shape)
        found = curvature.apply(number, given)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_two_halves_are_one_whole_inverse(tiny_model, ragged_batch):
    model = tiny_model("gpt2")
    layers = tracked_layers(model)
    curvature = fitted(model, ragged_batch, layers)
    for number, layer in enumerate(layers):
        given = torch.randn(layer.outputs, layer.inputs, dtype=torch.float64)
        halves = curvature.apply(number, curvature.apply(number, given, -0.5), -0.5)
        torch.testing.assert_close(halves, curvature.apply(number, given), rtol=1e-10, atol=1e-12)


def test_the_inner_product_of_two_halves_is_that_of_one_side_under_the_inverse(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LAYER)
    curvature = fitted(model, ragged_batch, layers)
    for number, layer in enumerate(layers):
        query, row = torch.randn(2, layer.outputs, layer.inputs, dtype=torch.float64)
        both = (curvature.apply(number, query, -0.5) * curvature.apply(number, row, -0.5)).sum()
        one = (curvature.apply(number, query) * row).sum()
        torch.testing.assert_close(both, one, rtol=1e-10, atol=1e-10)


def test_zero_damping_is_the_exact_inverse():
    sums = random_sums()
    basis = decompose(sums, torch.float64)
    curvature = KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), Damping(value=0))
    assert curvature.dampings == (0.0, 0.0)
    for number, module in enumerate(sums.modules):
        inputs, outputs = sums.inputs[module.name][0] / 80, sums.outputs[module.name][0] / 40
        given = torch.randn(module.outputs, module.inputs, dtype=torch.float64)
        inverse = torch.linalg.inv(outputs) @ given @ torch.linalg.inv(inputs)
        torch.testing.assert_close(curvature.apply(number, given), inverse, rtol=1e-10, atol=1e-12)


def test_applying_it_changes_no_state_and_repeats_bit_for_bit(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LAYER)
    curvature = fitted(model, ragged_batch, layers)
    state = {name: tensor.clone() for name, tensor in curvature.basis.tensors().items()}
    values = [value.clone() for value in curvature.eigenvalues]
    given = torch.randn(layers[0].outputs, layers[0].inputs, dtype=torch.float64)
    kept = given.clone()
    first = curvature.apply(0, given)
    assert torch.equal(curvature.apply(0, given), first)
    assert torch.equal(given, kept)
    assert all(torch.equal(tensor, state[name]) for name, tensor in curvature.basis.tensors().items())
    assert all(torch.equal(now, then) for now, then in zip(curvature.eigenvalues, values, strict=True))
    again = fitted(model, ragged_batch, layers)
    assert torch.equal(again.apply(0, given), first)


def test_gradients_keep_their_dtype_whatever_the_basis_is_in():
    sums = random_sums()
    basis = decompose(sums)
    curvature = KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), Damping())
    assert basis.modules[0].inputs.vectors[0].dtype == torch.float32
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert curvature.apply(0, torch.ones(4, 7, dtype=dtype)).dtype == dtype


def test_a_basis_survives_being_written_as_tensors_bit_for_bit(tiny_model, ragged_batch):
    model = tiny_model("gpt2")
    layers = tracked_layers(model)
    settings = FactorSettings(width_limit=24, blocks=3)
    basis = decompose(covariances(model, layers, CausalLM().example_loss, [ragged_batch], settings))
    again = Eigenbasis.from_tensors(widths_of(layers), settings, basis.tensors())
    assert [module.name for module in again.modules] == [layer.name for layer in layers]
    assert len(again["transformer.h.0.mlp.c_fc"].outputs.vectors) == 3
    assert basis.tensors().keys() == again.tensors().keys()
    assert all(torch.equal(tensor, basis.tensors()[name]) for name, tensor in again.tensors().items())


def test_the_same_sums_with_their_rows_turned_give_the_same_signs_of_eigenvectors():
    sums = random_sums()
    basis = decompose(sums, torch.float64)
    for module in basis.modules:
        for side in (module.inputs, module.outputs):
            largest = side.vectors[0].gather(0, side.vectors[0].abs().argmax(dim=0, keepdim=True))
            assert (largest > 0).all()
            torch.testing.assert_close(side.vectors[0].T @ side.vectors[0], torch.eye(len(side.values)).double())


def test_relative_damping_is_a_share_of_each_modules_mean_eigenvalue_and_absolute_is_itself():
    basis = decompose(random_sums(), torch.float64)
    values = kfac_eigenvalues(basis)
    relative = KroneckerCurvature.prepare(basis, values, Damping(value=0.5))
    for found, damping in zip(values, relative.dampings, strict=True):
        assert damping == pytest.approx(0.5 * float(found.mean()))
    absolute = KroneckerCurvature.prepare(basis, values, Damping(kind="absolute", value=0.5))
    assert absolute.dampings == (0.5, 0.5)


def test_the_spectrum_says_how_much_of_the_trace_the_damping_outweighs():
    basis = decompose(random_sums(), torch.float64)
    values = kfac_eigenvalues(basis)
    heavy = KroneckerCurvature.prepare(basis, values, Damping(kind="absolute", value=1e9))
    spectra = list(heavy.spectra())
    assert [spectrum.module for spectrum in spectra] == ["a", "b"]
    assert spectra[0].trace_share_under_damping == pytest.approx(1)
    assert spectra[0].largest == pytest.approx(float(values[0].max()))


def test_a_singular_curvature_without_damping_is_refused_by_name(tiny_model, ragged_batch):
    model = tiny_model("llama")
    layers = tracked_layers(model, LAYER)
    # Six tokens span at most six of 24 inputs.
    with pytest.raises(CurvatureError, match=r"layers\.0\.self_attn\.k_proj is singular and the damping is 0"):
        fitted(model, alone(ragged_batch, 1), layers, Damping(value=0))


def test_eigenvalues_that_are_not_finite_are_refused_by_name():
    basis = decompose(random_sums(), torch.float64)
    first, second = kfac_eigenvalues(basis)
    second[2, 1] = float("inf")
    with pytest.raises(CurvatureError, match="The eigenvalues of b are not finite"):
        KroneckerCurvature.prepare(basis, (first, second), Damping())


def test_factors_of_another_model_are_refused_with_both_names():
    with pytest.raises(CurvatureError, match="no factors for lm_head; these are for a, b"):
        decompose(random_sums())["lm_head"]


def every_sign(model, layers, x, fit_of):
    """A fit over `x` once for every sign pattern: the exact Fisher of squared error."""
    outputs = model(x).shape[1]
    with fit_of(model, layers) as fit:
        for signs in sign_patterns(outputs):
            fit.add(lambda model, batch, signs=signs: SquaredError().pushed(model(batch), signs), x)
    return fit.sums


def exact_curvatures(model, x):
    """Layers, K-FAC and EK-FAC of the exact Fisher."""
    layers = tracked_layers(model, LayerSettings(bias=True))
    covariance = every_sign(model, layers, x, lambda *given: CovarianceFit(*given, FactorSettings()))
    basis = decompose(covariance, torch.float64)
    sums = every_sign(model, layers, x, lambda *given: EigenvalueFit(*given, basis))
    damping = Damping(kind="absolute", value=0.01)
    return (
        layers,
        KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), damping),
        KroneckerCurvature.prepare(basis, sums.eigenvalues(), damping),
    )


def gauss_newton(model, layer, x):
    """(1/N) Σ Jᵀ 2 J of one layer's weight (and bias), J the Jacobian of the prediction, by autograd."""
    block = 0
    parameters = [layer.module.weight, *([layer.module.bias] if layer.bias else [])]
    for parameter in parameters:
        parameter.requires_grad_(True)
    for example in x:
        rows = []
        for output in model(example[None])[0]:
            found = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([found[0], *(bias[:, None] for bias in found[1:])], dim=1).flatten())
        jacobian = torch.stack(rows)
        block = block + 2 * jacobian.T @ jacobian / len(x)
    return block


def assert_inverts(curvature, number, layer, dense):
    given = torch.randn(4, layer.outputs, layer.inputs, dtype=torch.float64)
    expected = torch.linalg.solve(dense + 0.01 * torch.eye(len(dense), dtype=torch.float64), given.flatten(1).T).T
    torch.testing.assert_close(curvature.apply(number, given).flatten(1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [False, True])
def test_in_a_deep_linear_network_kfac_and_ekfac_are_the_block_gauss_newton(bias):
    model, x = network(4, 5, 3, 2, bias=bias), torch.randn(9, 4, dtype=torch.float64)
    layers, kfac, ekfac = exact_curvatures(model, x)
    for number, layer in enumerate(layers):
        dense = gauss_newton(model, layer, x)
        torch.testing.assert_close(ekfac.eigenvalues[number], kfac.eigenvalues[number], rtol=1e-9, atol=1e-12)
        assert_inverts(kfac, number, layer, dense)
        assert_inverts(ekfac, number, layer, dense)


def test_for_one_datum_ekfac_is_the_gauss_newton_of_any_network():
    model = network(4, 5, 3, 2, activation=nn.Tanh, bias=True)
    x = torch.randn(1, 4, dtype=torch.float64)
    layers, _, ekfac = exact_curvatures(model, x)
    for number, layer in enumerate(layers):
        assert_inverts(ekfac, number, layer, gauss_newton(model, layer, x))


def test_for_several_data_and_a_nonlinear_network_neither_is():
    model, x = network(4, 5, 2, activation=nn.Tanh), torch.randn(9, 4, dtype=torch.float64)
    layers, *both = exact_curvatures(model, x)
    dense = gauss_newton(model, layers[0], x)
    for curvature in both:
        with pytest.raises(AssertionError):
            assert_inverts(curvature, 0, layers[0], dense)


@pytest.mark.parametrize("bias", [False, True])
def test_turning_inputs_and_weights_together_changes_no_product_under_the_curvature(bias):
    plain = network(4, 5, 3, activation=nn.Tanh, bias=bias)
    turned = network(4, 5, 3, activation=nn.Tanh, bias=bias)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(9, 3, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))[0]
    with torch.no_grad():
        turned[0].weight.copy_(plain[0].weight @ rotation.T)
    assert_same_scores(plain, (x, y), turned, (x @ rotation.T, y), bias)


def test_turning_the_middle_of_a_linear_network_changes_no_product_under_the_curvature():
    plain, turned = network(4, 5, 3), network(4, 5, 3)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(9, 3, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator))[0]
    with torch.no_grad():
        turned[0].weight.copy_(rotation @ plain[0].weight)
        turned[2].weight.copy_(plain[2].weight @ rotation.T)
    assert_same_scores(plain, (x, y), turned, (x, y), bias=False)


def assert_same_scores(first, given, second, changed, bias):
    task, settings = SquaredError(), LayerSettings(bias=bias)
    for name in ("kfac", "ekfac"):
        method = recipe(name, factors={"labels": "empirical"})
        one, other = (
            pairwise(model, task, [batch], [batch], method, settings)
            for model, batch in ((first, given), (second, changed))
        )
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_a_convolutions_curvature_is_over_its_patches():
    model, measure = Pictures(), PictureTask().example_loss
    layers = tracked_layers(model, LayerSettings(bias=True))
    images, labels = pictures()
    single = [(images[n : n + 1], labels[n : n + 1]) for n in range(5)]
    basis = eigenbasis(model, layers, measure, [(images, labels)])
    assert squares(model, layers, measure, [(images, labels)], basis).examples == 5
    curvature = KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), Damping(value=0.2))
    for number, (layer, held) in enumerate(zip(layers, seen_by(model, layers, measure, single), strict=True)):
        given = torch.randn(layer.outputs, layer.inputs, dtype=torch.float64)
        dense = damped(dense_kfac(input_covariance(held), output_covariance(held, 5)), 0.2)
        expected = torch.linalg.solve(dense, given.flatten()).reshape(given.shape)
        torch.testing.assert_close(curvature.apply(number, given), expected, rtol=1e-8, atol=1e-10)
