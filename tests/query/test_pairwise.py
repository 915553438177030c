"""Scores in memory: their sign, scale and unit against definitions that can be read off."""

import pytest
import torch
from torch import nn

import influence.recipes as recipes
from influence.errors import CaptureError, CurvatureError, RecipeError
from influence.gradients.projection import Projection
from influence.model.layers import LayerSettings, tracked_layers
from influence.query.pairwise import pairwise
from influence.task import CausalLM
from tests.gradients.conftest import alone, examples, task_of
from tests.reference.kronecker import damped, dense_ekfac, dense_kfac, input_covariance, output_covariance, seen_by
from tests.reference.kronecker import scores as dense_scores
from tests.reference.microbatch import one_backward_per_example
from tests.reference.toys import SquaredError, network, plain_loss

WHOLE = {"projection": {"kind": "none"}}
EMPIRICAL = {"labels": "empirical"}
CURVED = {
    "logra": {"projection": {"p": 4, "q": 4}},
    "whitened": {"projection": {"p": 4, "q": 4, "damping": 0.1}, "factors": EMPIRICAL},
    "kfac": {"factors": EMPIRICAL},
    "ekfac": {"factors": EMPIRICAL},
}
"""Recipes under an inverse curvature, of the data's own labels."""


def scores(model, batch, recipe, task=None):
    return pairwise(model, task or CausalLM(), [batch], [batch], recipe)


def gradients(model, batch, recipe, task=None):
    task = task or CausalLM()
    layers = tracked_layers(model)
    return one_backward_per_example(model, layers, Projection(recipe.projection), task.example_loss, examples(batch))


def test_graddot_predicts_what_one_step_on_the_row_does_to_the_query(tiny_model, ragged_batch):
    model, task, rate = tiny_model("gptneox"), CausalLM(), 1e-6
    recipe = recipes.recipe("graddot", **WHOLE)
    layers = LayerSettings(include=("*attention*", "*mlp*"), bias=True)
    predicted = pairwise(model, task, [ragged_batch], [ragged_batch], recipe, layers)
    tracked = [layer.module for layer in tracked_layers(model, layers)]
    with torch.no_grad():
        before = task.measurement(model, ragged_batch)
    for row in range(4):
        stepped = tiny_model("gptneox")
        task.example_loss(stepped, alone(ragged_batch, row)).sum().backward()
        names = [name for name, module in model.named_modules() if module in tracked]
        with torch.no_grad():
            for name in names:
                for parameter in stepped.get_submodule(name).parameters():
                    parameter -= rate * parameter.grad
            gained = (task.measurement(stepped, ragged_batch) - before) / rate
        torch.testing.assert_close(gained, predicted[:, row], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "bert", "lora"])
def test_gradcos_is_the_cosine_and_one_on_the_diagonal(tiny_model, ragged_batch, family):
    model, task, recipe = tiny_model(family), task_of(family), recipes.recipe("gradcos")
    found = scores(model, ragged_batch, recipe, task)
    rows = nn.functional.normalize(gradients(model, ragged_batch, recipe, task), dim=1)
    torch.testing.assert_close(found, rows @ rows.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.diagonal(), torch.ones(4, dtype=torch.float64))


def test_logra_is_the_damped_inverse_fisher_between_query_and_row_over_n(tiny_model, ragged_batch):
    model, recipe = tiny_model("llama"), recipes.recipe("logra", projection={"p": 4, "q": 4}, damping=0.3)
    found = scores(model, ragged_batch, recipe)
    rows = gradients(model, ragged_batch, recipe)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for block in rows.split(16, dim=1):
        fisher = block.T @ block / len(block)
        damping = 0.3 * fisher.trace() / len(fisher)
        expected += (
            block @ torch.linalg.inv(fisher + damping * torch.eye(16, dtype=torch.float64)) @ block.T / len(block)
        )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_multiplying_the_loss_by_a_constant_leaves_logra_unchanged(tiny_model, ragged_batch):
    class Scaled(CausalLM):
        """The loss is minus the measurement, so this scales both."""

        def measurement(self, model, batch):
            return 7.0 * super().measurement(model, batch)

    model, recipe = tiny_model("llama"), recipes.recipe("logra", projection={"p": 4, "q": 4})
    plain, scaled = scores(model, ragged_batch, recipe), scores(model, ragged_batch, recipe, Scaled())
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-10)


def test_curvature_under_cosine_is_halved_between_the_sides(tiny_model, ragged_batch):
    model = tiny_model("llama")
    halves = recipes.recipe("logra", projection={"p": 4, "q": 4}, damping=0.3, comparison="cosine")
    dots = scores(model, ragged_batch, recipes.recipe("logra", projection={"p": 4, "q": 4}, damping=0.3))
    lengths = dots.diagonal().sqrt()
    torch.testing.assert_close(
        scores(model, ragged_batch, halves), dots / lengths[:, None] / lengths[None], rtol=1e-8, atol=1e-12
    )


def test_permuting_the_data_permutes_the_scores(tiny_model, ragged_batch):
    model, recipe = tiny_model("qwen2"), recipes.recipe("logra", projection={"p": 4, "q": 4})
    single = examples(ragged_batch)
    forward = pairwise(model, CausalLM(), single, [ragged_batch], recipe)
    order = [2, 0, 3, 1]
    shuffled = pairwise(model, CausalLM(), [single[index] for index in order], [ragged_batch], recipe)
    torch.testing.assert_close(shuffled, forward[:, order], rtol=1e-5, atol=1e-9)


def test_per_module_scores_add_up(tiny_model, ragged_batch):
    model, recipe = tiny_model("gpt2"), recipes.recipe("graddot")
    whole = pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], recipe)
    names = [layer.name for layer in tracked_layers(model)]
    parts = [
        pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], recipe, LayerSettings(include=(name,)))
        for name in names
    ]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-9, atol=1e-12)


def test_bfloat16_scores_correlate_with_float32_ones(tiny_model, ragged_batch):
    recipe = recipes.recipe("graddot")
    exact = scores(tiny_model("gptneox", torch.float32), ragged_batch, recipe)
    coarse = scores(tiny_model("gptneox", torch.bfloat16), ragged_batch, recipe)
    assert coarse.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact.flatten(), coarse.flatten()]))[0, 1] > 0.99


def test_a_row_without_scored_tokens_scores_zero(tiny_model, ragged_batch):
    ragged_batch.labels[1] = -100
    try:
        for name in ("graddot", "gradcos", "logra"):
            found = scores(tiny_model("llama"), ragged_batch, recipes.recipe(name))
            assert torch.isfinite(found).all()
            assert (found[:, 1] == 0).all()
    finally:
        ragged_batch.labels[1, 1:] = ragged_batch.input_ids[1, 1:].masked_fill(
            ragged_batch.attention_mask[1, 1:] == 0, -100
        )


def dense_blocks(model, layers, single, share, kind):
    """The damped dense curvature of every layer."""
    seen = seen_by(model, layers, plain_loss, single)
    rows = one_backward_per_example(model, layers, Projection(recipes.recipe(kind).projection), plain_loss, single)
    parts = rows.split([layer.outputs * layer.inputs for layer in layers], dim=1)
    blocks = []
    for held, part in zip(seen, parts, strict=True):
        inputs, outputs = input_covariance(held), output_covariance(held, len(single))
        dense = dense_kfac(inputs, outputs) if kind == "kfac" else dense_ekfac(inputs, outputs, part)
        blocks.append(damped(dense, share))
    return blocks, rows


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
@pytest.mark.parametrize(
    ("family", "include", "bias"),
    [
        ("llama", ("*.0.self_attn.*",), False),
        ("gpt2", ("*.1.attn.c_proj",), True),
        ("bert", ("*.query", "classifier"), True),
        ("lora", ("*.0.*",), False),
    ],
)
def test_kfac_and_ekfac_are_the_dense_inverse_between_query_and_row_over_n(
    tiny_model, ragged_batch, kind, family, include, bias
):
    model, task = tiny_model(family), task_of(family)
    settings = LayerSettings(include=include if family != "lora" else ("*",), bias=bias)
    layers = tracked_layers(model, settings)
    single = examples(ragged_batch)
    recipe = recipes.recipe(kind, damping=0.3, factors=EMPIRICAL)
    # Rows come one by one and queries together: how they are cut into batches must not matter.
    found = pairwise(model, task, iter(single), iter([ragged_batch]), recipe, settings)
    blocks, rows = dense_blocks(model, layers, single, 0.3, kind)
    expected = dense_scores(blocks, rows, rows)
    assert found.shape == (4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    assert (found.diagonal() > 0).all()


def scaled_by(loss=1.0, measured=1.0):
    class Scaled(CausalLM):
        def example_loss(self, model, batch):
            return loss * -CausalLM.measurement(self, model, batch)

        def measurement(self, model, batch):
            return measured * CausalLM.measurement(self, model, batch)

    return Scaled()


@pytest.mark.parametrize("name", CURVED)
def test_under_relative_damping_scores_follow_the_measurements_scale_and_the_inverse_of_the_losss(
    tiny_model, ragged_batch, name
):
    model, recipe = tiny_model("llama"), recipes.recipe(name, **CURVED[name])
    plain = scores(model, ragged_batch, recipe, scaled_by())
    close = {"rtol": 1e-5, "atol": 1e-7 * float(plain.abs().max())}
    for loss, measured in ((7.0, 1.0), (1.0, 7.0), (7.0, 7.0)):
        found = scores(model, ragged_batch, recipe, scaled_by(loss, measured))
        torch.testing.assert_close(found, plain * measured / loss, **close)


def test_scaling_the_loss_of_drawn_labels_too_leaves_scores_unchanged():
    class Scaled(SquaredError):
        def __init__(self, factor):
            self.factor = factor

        def example_loss(self, model, batch):
            return self.factor * super().example_loss(model, batch)

        def measurement(self, model, batch):
            return self.factor * super().measurement(model, batch)

        def sampled_loss(self, model, batch, generator):
            return self.factor * super().sampled_loss(model, batch, generator)

    model = network(4, 3, 2, activation=nn.Tanh)
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(9, 4, generator=generator).double(), torch.randn(9, 2, generator=generator).double())
    for name in ("kfac", "ekfac", "whitened"):
        method = recipes.recipe(name, damping=0.1)
        plain, scaled = (pairwise(model, Scaled(c), [batch], [batch], method) for c in (1.0, 5.0))
        torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-8 * float(plain.abs().max()))


def test_absolute_damping_does_not_follow_the_scale(tiny_model, ragged_batch):
    absolute = {"kind": "ekfac", "damping": {"kind": "absolute", "value": 0.5}}
    recipe = recipes.recipe("ekfac", curvature=absolute, factors=EMPIRICAL)
    plain, scaled = (scores(tiny_model("llama"), ragged_batch, recipe, scaled_by(c, c)) for c in (1.0, 7.0))
    assert not torch.allclose(scaled, plain, rtol=0.1)


@pytest.mark.parametrize("name", CURVED)
def test_permuting_the_data_permutes_the_scores_under_every_curvature(tiny_model, ragged_batch, name):
    model, recipe = tiny_model("llama"), recipes.recipe(name, **CURVED[name])
    single, order = examples(ragged_batch), [2, 0, 3, 1]
    forward = pairwise(model, CausalLM(), single, [ragged_batch], recipe)
    shuffled = pairwise(model, CausalLM(), [single[index] for index in order], [ragged_batch], recipe)
    torch.testing.assert_close(shuffled, forward[:, order], rtol=1e-5, atol=1e-7 * float(forward.abs().max()))


@pytest.mark.parametrize("name", CURVED)
def test_a_row_that_is_there_twice_keeps_two_equal_scores(tiny_model, ragged_batch, name):
    model, recipe = tiny_model("llama"), recipes.recipe(name, **CURVED[name])
    single = examples(ragged_batch)
    found = pairwise(model, CausalLM(), [*single, single[1]], [ragged_batch], recipe)
    assert found.shape == (4, 5)
    torch.testing.assert_close(found[:, 4], found[:, 1], rtol=1e-12, atol=0)
    # All data twice: the mean loss and its curvature stay, and each copy counts for half.
    twice = pairwise(model, CausalLM(), [*single, *single], [ragged_batch], recipe)
    once = pairwise(model, CausalLM(), single, [ragged_batch], recipe)
    torch.testing.assert_close(twice[:, :4] + twice[:, 4:], once, rtol=1e-5, atol=1e-7 * float(once.abs().max()))


@pytest.mark.parametrize("name", [*CURVED, "graddot"])
def test_asking_again_changes_nothing_and_gives_the_same_bits(tiny_model, ragged_batch, name):
    model, task = tiny_model("llama"), CausalLM()
    parts = {**CURVED.get(name, {}), "factors": {"labels": "sampled"}}
    recipe = recipes.recipe(name, **parts)
    task.example_loss(model, ragged_batch)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    generator = torch.get_rng_state()
    first = scores(model, ragged_batch, recipe, task)
    assert torch.equal(scores(model, ragged_batch, recipe, task), first)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_fisher_halved_between_the_sides_gives_the_same_scores(tiny_model, ragged_batch):
    model = tiny_model("llama")
    found = [
        scores(model, ragged_batch, recipes.recipe("logra", curvature={"side": side}, **CURVED["logra"]))
        for side in ("query", "both")
    ]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9 * float(found[0].abs().max()))


@pytest.mark.parametrize("name", ["kfac", "ekfac", "whitened"])
def test_no_rows_leave_no_factors_to_fit(tiny_model, ragged_batch, name):
    with pytest.raises(CurvatureError, match="need rows; there are none"):
        pairwise(tiny_model("llama"), CausalLM(), [], [ragged_batch], recipes.recipe(name))
    with pytest.raises(CaptureError, match="no query batches"):
        pairwise(tiny_model("llama"), CausalLM(), [ragged_batch], [], recipes.recipe(name))


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_a_sides_width_and_its_blocks_are_the_recipes(tiny_model, ragged_batch, name):
    narrow = {**EMPIRICAL, "width_limit": 24}
    with pytest.raises(CurvatureError, match=r"gate_proj has 32 outputs.*recipe\.factors\.blocks"):
        scores(tiny_model("llama"), ragged_batch, recipes.recipe(name, factors=narrow))
    cut = scores(tiny_model("llama"), ragged_batch, recipes.recipe(name, factors={**narrow, "blocks": 2}))
    whole = scores(tiny_model("llama"), ragged_batch, recipes.recipe(name, factors=EMPIRICAL))
    assert torch.isfinite(cut).all()
    assert not torch.allclose(cut, whole, rtol=1e-3)
    assert torch.corrcoef(torch.stack([cut.flatten(), whole.flatten()]))[0, 1] > 0.9


def test_no_batches_is_an_error(tiny_model, ragged_batch):
    with pytest.raises(CaptureError, match="no training batches"):
        pairwise(tiny_model("llama"), CausalLM(), [], [ragged_batch])


def test_a_singular_fisher_without_damping_is_refused_by_module_name(tiny_model, ragged_batch):
    recipe = recipes.recipe("logra", damping=0)
    with pytest.raises(CurvatureError, match=r"q_proj \(256 columns.* is singular"):
        scores(tiny_model("llama"), ragged_batch, recipe)


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("logar", {}, "Did you mean 'logra'"),
        ("graddot", {"comparison": "euclid"}, "comparison: Input should be 'dot' or 'cosine'"),
        ("graddot", {"projektion": {}}, "There are name, measurement"),
        ("logra", {"damping": -1}, "curvature.damping.value"),
        ("logra", {"projection": {"p": 0}}, "projection.p"),
        ("ekfca", {}, "Did you mean 'ekfac'"),
        ("nonsense", {}, "The presets are graddot, gradcos.*whitened.*kfac, ekfac"),
        (
            "logra",
            {"curvature": {"kind": "hessian"}},
            "curvature.kind: Input should be 'identity', 'fisher', 'kfac' or",
        ),
        ("ekfac", {"factors": {"labels": "true"}}, "factors.labels: Input should be 'sampled' or 'empirical'"),
        ("whitened", {"projection": {"rows": "sorted"}}, "'random', 'whitened' or 'eigenvectors'"),
        ("kfac", {"projection": {"kind": "kronecker"}}, "nearest that can be: projection kind none.*rows whitened"),
        ("graddot", {"curvature": {"kind": "ekfac"}}, "ekfac needs whole gradients, and the projection is kronecker"),
        ("ekfac", {"comparison": "cosine"}, "comparison dot, or projection rows whitened with cosine"),
        ("logra", {"comparison": "cosine", "curvature": {"side": "query"}}, "half the curvature on each side"),
        ("kfac", {"curvature": {"blocks": "all"}}, "only a fisher can be taken over all columns together, not kfac"),
    ],
)
def test_an_unknown_recipe_or_part_names_the_allowed_ones(name, parts, message):
    with pytest.raises(RecipeError, match=message):
        recipes.recipe(name, **parts)


@pytest.mark.parametrize("name", ["kfac", "ekfac", "whitened"])
def test_padding_is_left_out_of_the_factors_whether_a_batch_is_an_object_or_a_mapping(tiny_model, ragged_batch, name):
    names = ("input_ids", "attention_mask", "labels")
    mapping, model = {name: getattr(ragged_batch, name) for name in names}, tiny_model("llama")
    recipe = recipes.recipe(name, **CURVED[name])
    torch.testing.assert_close(
        scores(model, mapping, recipe), scores(model, ragged_batch, recipe), rtol=1e-12, atol=1e-15
    )
