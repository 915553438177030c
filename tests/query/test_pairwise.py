"""Scores in memory: their sign, scale and unit against definitions that can be read off."""

import pytest
import torch
from torch import nn

import influence.recipe as recipes
from influence.errors import CaptureError, CurvatureError, RecipeError
from influence.gradients.projection import Projection
from influence.model.layers import LayerSettings, tracked_layers
from influence.query.pairwise import pairwise
from influence.task import CausalLM
from tests.gradients.conftest import alone, examples, task_of
from tests.reference.microbatch import one_backward_per_example

WHOLE = {"projection": {"kind": "none"}}


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


def test_no_batches_is_an_error(tiny_model, ragged_batch):
    with pytest.raises(CaptureError, match="no training batches"):
        pairwise(tiny_model("llama"), CausalLM(), [], [ragged_batch])


def test_a_singular_fisher_without_damping_is_refused_by_module_name(tiny_model, ragged_batch):
    recipe = recipes.recipe("logra", damping=0)
    with pytest.raises(CurvatureError, match=r"q_proj \(256 columns, 4 rows\) is singular"):
        scores(tiny_model("llama"), ragged_batch, recipe)


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("logar", {}, "Did you mean 'logra'"),
        ("graddot", {"comparison": "euclid"}, "comparison: Input should be 'dot' or 'cosine'"),
        ("graddot", {"projektion": {}}, "The parts are name, measurement"),
        ("logra", {"damping": -1}, "curvature.damping.value"),
        ("logra", {"projection": {"p": 0}}, "projection.p"),
    ],
)
def test_an_unknown_recipe_or_part_names_the_allowed_ones(name, parts, message):
    with pytest.raises(RecipeError, match=message):
        recipes.recipe(name, **parts)
