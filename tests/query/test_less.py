"""Recipes whose gradients Adam scales, and the baselines, in memory: against one backward an example and plain sums."""

import pytest
import torch
from torch import nn

import influence.recipes as recipes
from influence.baselines import bm25
from influence.config import parse_config
from influence.errors import ConfigError, OptimiserMismatch, RecipeError
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import tracked_layers
from influence.query.pairwise import pairwise
from influence.task import CausalLM
from tests.gradients.conftest import alone, examples, task_of
from tests.gradients.test_adam import EPSILON, divided_one_by_one, random_moments
from tests.reference.microbatch import one_backward_per_example

NARROW = {"p": 4, "q": 4}
ADAM = {"kind": "adam", "epsilon": EPSILON}


def sides(model, task, batch):
    """Raw and divided rows of a batch, one example at a time."""
    layers, projection, moments = tracked_layers(model), Projection(ProjectionSettings(**NARROW)), random_moments(model)
    single = examples(batch)
    raw = one_backward_per_example(model, layers, projection, task.example_loss, single)
    return raw, divided_one_by_one(model, layers, projection, task.example_loss, single, moments), moments


@pytest.mark.parametrize("family", ["gpt2", "bert", "lora"])
def test_less_is_the_cosine_of_raw_queries_with_divided_rows(tiny_model, ragged_batch, family):
    model, task = tiny_model(family), task_of(family)
    raw, divided, moments = sides(model, task, ragged_batch)
    recipe = recipes.recipe("less", projection=NARROW, gradient={"epsilon": EPSILON})
    found = pairwise(model, task, [ragged_batch], [ragged_batch], recipe, second_moments=moments)
    expected = nn.functional.normalize(raw, dim=1) @ nn.functional.normalize(divided, dim=1).T
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert (found.diagonal() < 1 - 1e-6).all()


def test_graddot_on_both_sides_divides_twice_and_on_rows_predicts_an_adam_step(tiny_model, ragged_batch):
    model, task, rate = tiny_model("gptneox"), CausalLM(), 1e-6
    _, divided, moments = sides(model, task, ragged_batch)
    both = recipes.recipe("graddot", projection=NARROW, gradient=ADAM)
    found = pairwise(model, task, [ragged_batch], [ragged_batch], both, second_moments=moments)
    torch.testing.assert_close(found, divided @ divided.T, rtol=1e-8, atol=1e-12)
    rows = recipes.recipe("graddot", projection={"kind": "none"}, gradient={**ADAM, "sides": "rows"})
    predicted = pairwise(model, task, [ragged_batch], [ragged_batch], rows, second_moments=moments)
    with torch.no_grad():
        before = task.measurement(model, ragged_batch)
    stepped = tiny_model("gptneox")
    task.example_loss(stepped, alone(ragged_batch, 2)).sum().backward()
    tracked = {f"{layer.name}.weight" for layer in tracked_layers(stepped)}
    with torch.no_grad():
        for name, parameter in stepped.named_parameters():
            if name in tracked:
                parameter -= rate * parameter.grad / (moments[name].sqrt() + EPSILON)
        gained = (task.measurement(stepped, ragged_batch) - before) / rate
    torch.testing.assert_close(gained, predicted[:, 2], rtol=1e-3, atol=1e-3)
    assert "Adam step" in rows.unit
    assert "no unit" in both.unit


def test_trackstar_takes_adam_on_both_sides_on_request(tiny_model, ragged_batch):
    model, task = tiny_model("llama"), CausalLM()
    _, divided, moments = sides(model, task, ragged_batch)
    recipe = recipes.recipe("trackstar", projection=NARROW, gradient=ADAM, damping=0.3)
    found = pairwise(model, task, [ragged_batch], [ragged_batch], recipe, second_moments=moments)
    dots = torch.zeros(4, 4, dtype=torch.float64)
    for block in divided.split(16, dim=1):
        fisher = block.T @ block / len(block)
        damped = fisher + 0.3 * fisher.trace() / len(fisher) * torch.eye(16, dtype=torch.float64)
        dots += block @ torch.linalg.solve(damped, block.T)
    lengths = dots.diagonal().sqrt()
    torch.testing.assert_close(found, dots / lengths[:, None] / lengths, rtol=1e-7, atol=1e-10)


def test_second_moments_of_one_constant_leave_less_at_the_plain_cosine(tiny_model, ragged_batch):
    model = tiny_model("llama")
    constant = {name: torch.full_like(parameter, 4.0) for name, parameter in model.named_parameters()}
    found = pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], "less", second_moments=constant)
    plain = pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], "gradcos")
    torch.testing.assert_close(found, plain, rtol=1e-8, atol=1e-12)


def test_each_checkpoint_is_divided_by_its_own_second_moments(tiny_model, ragged_batch):
    model, task = tiny_model("llama"), CausalLM()
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    second = {name: weight * 1.1 for name, weight in first.items()}
    moments = random_moments(model)
    later = {name: moment + 1 for name, moment in moments.items()}
    recipe = recipes.recipe("graddot", projection=NARROW, gradient={**ADAM, "sides": "rows"})
    asked = (task, [ragged_batch], [ragged_batch], recipe)
    found = pairwise(model, *asked, checkpoints=[first, second], second_moments=[moments, later])
    apart = [
        pairwise(model, *asked, checkpoints=[weights], second_moments=own)
        for weights, own in ((first, moments), (second, later))
    ]
    torch.testing.assert_close(found, (apart[0] + apart[1]) / 2, rtol=1e-8, atol=1e-12)
    with pytest.raises(RecipeError, match="there are 1 for 2 models"):
        pairwise(model, *asked, checkpoints=[first, second], second_moments=moments)


def test_the_state_that_the_recipe_names_is_read(tiny_model, ragged_batch, tmp_path):
    model, task = tiny_model("gpt2", torch.float32), CausalLM()
    optimiser = torch.optim.AdamW(model.parameters())
    task.example_loss(model, ragged_batch).sum().backward()
    optimiser.step()
    model.zero_grad()
    torch.save(optimiser.state_dict(), tmp_path / "optimizer.pt")
    recipe = recipes.recipe("less", projection=NARROW, gradient={"state": str(tmp_path)})
    read = pairwise(model, task, [ragged_batch], [ragged_batch], recipe)
    held = {name: optimiser.state[p]["exp_avg_sq"] / (1 - 0.999) for name, p in model.named_parameters()}
    given = pairwise(model, task, [ragged_batch], [ragged_batch], recipe, second_moments=held)
    torch.testing.assert_close(read, given, rtol=1e-5, atol=1e-6)
    elsewhere = recipes.recipe("less", gradient={"state": str(tmp_path / "none")})
    with pytest.raises(OptimiserMismatch, match="no such file or folder"):
        pairwise(model, task, [ragged_batch], [ragged_batch], elsewhere)


def test_less_without_second_moments_says_what_to_set_and_raw_recipes_take_none(tiny_model, ragged_batch):
    model = tiny_model("llama")
    asked = (model, CausalLM(), [ragged_batch], [ragged_batch])
    with pytest.raises(RecipeError, match=r"less divides .* there are none for 1 model. Set recipe.gradient.state to"):
        pairwise(*asked, "less")
    with pytest.raises(RecipeError, match="Second moments were given, and graddot divides by none"):
        pairwise(*asked, "graddot", second_moments={})
    with pytest.raises(RecipeError, match="graddot reads no texts"):
        pairwise(*asked, "graddot", decode=lambda batch: [])


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("whitened", {"gradient": "adam"}, "curvature fisher with projection rows random, or gradient raw"),
        ("ekfac", {"gradient": "adam"}, "curvature fisher with projection rows random, or gradient raw"),
        ("less", {"curvature": {"kind": "fisher"}}, "gradient sides both, or curvature identity"),
        ("trak", {"gradient": "adam"}, "measurement log_likelihood, or gradient raw"),
        ("less", {"gradient": {"state": "x"}, "checkpoints": ({}, {})}, "one optimiser's, and there are 2 checkpoints"),
        ("graddot", {"gradient": {"kind": "sgd"}}, "gradient.kind: Input should be 'raw' or 'adam'"),
        ("less", {"gradient": {"epsilon": 0}}, "gradient.epsilon: Input should be greater than 0"),
        ("repsim", {"comparison": "cosine"}, "the baseline repsim has no comparison: leave them out"),
        ("bm25", {"projection": {"p": 4}, "gradient": "adam"}, "the baseline bm25 has no gradient and no projection"),
    ],
)
def test_parts_that_do_not_combine_are_refused_with_the_nearest_that_do(name, parts, message):
    with pytest.raises(RecipeError, match=message):
        recipes.recipe(name, **parts)


def test_the_short_form_keeps_the_presets_sides_and_the_summary_prints_the_gradient():
    less = recipes.recipe("less", gradient="adam")
    assert less.gradient.sides == "rows"
    assert less.summary.startswith("less: Adam-scaled gradients (rows only, ε 1e-08), two-sided 16×16")
    assert recipes.recipe("graddot", gradient="raw").summary.startswith("graddot: raw gradients, ")
    assert recipes.recipe("trackstar", gradient="adam").gradient.sides == "both"
    assert recipes.Recipe.model_validate(less.model_dump(mode="json")) == less


def test_a_run_file_reaches_less_by_name_and_a_build_never_takes_it_for_raw_gradients():
    with pytest.raises(ConfigError, match="the run file names none"):
        parse_config({"model": {"path": "m"}, "data": {"path": "d"}}, ["recipe=less"])


def test_repsim_by_name_is_the_cosine_of_mean_last_hidden_states(tiny_model, ragged_batch):
    model = tiny_model("llama")
    with torch.no_grad():
        means = [
            model.model(input_ids=single.input_ids).last_hidden_state[0].mean(0) for single in examples(ragged_batch)
        ]
    directions = nn.functional.normalize(torch.stack(means), dim=1)
    found = pairwise(model, CausalLM(), examples(ragged_batch), [ragged_batch], "repsim")
    torch.testing.assert_close(found, directions @ directions.T, rtol=1e-9, atol=1e-12)
    assert recipes.recipe("repsim").unit == "cosine (no unit)"


def test_bm25_by_name_scores_the_texts_and_refuses_batches_that_nobody_reads(tiny_model, tokenizer, ragged_batch):
    model = tiny_model("llama")

    def decode(batch):
        return tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)

    found = pairwise(model, CausalLM(), examples(ragged_batch), [ragged_batch], "bm25", decode=decode)
    prepared = bm25.fit(decode(ragged_batch))
    for row, text in zip(found, decode(ragged_batch), strict=True):
        torch.testing.assert_close(row, torch.from_numpy(prepared.scores(text)))
    assert found.argmax(dim=1).tolist()[0] == 0
    with pytest.raises(RecipeError, match=r"bm25 compares texts, and batches hold tokens.*decode="):
        pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], "bm25")
