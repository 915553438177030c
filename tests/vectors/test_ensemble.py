"""Several checkpoints: TracIn's sum, TRAK's mean, one vector of all side by side, and the model left as it was."""

import pytest
import torch
from torch import nn

import influence.recipes as recipes
from influence.axes import ModuleColumns
from influence.curvature.projected_fisher import FisherSums, ProjectedFisher, blocks_of
from influence.errors import ModelError, RecipeError
from influence.query.pairwise import pairwise
from influence.task import CausalLM
from influence.vectors.ensemble import Ensemble, of_one, side_by_side
from influence.vectors.whiten import Comparison


class Labelled:
    def example_loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def classifier(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return [(torch.randn(count, 5, dtype=torch.float64, generator=generator), labels)]


TRAIN, QUERIES = data(9, 1), data(4, 2)
STATES = [classifier(seed).state_dict() for seed in range(3)]


def scores(recipe, checkpoints=None, model=None):
    return pairwise(model or classifier(), Labelled(), TRAIN, QUERIES, recipe, checkpoints=checkpoints)


def alone(recipe):
    """The scores of each checkpoint, as if it were the model."""
    return [scores(recipe, model=classifier(seed)) for seed in range(3)]


@pytest.mark.parametrize("kind", ["none", "kronecker"])
def test_tracin_is_the_sum_of_inner_products_times_learning_rates(kind):
    rates = [0.3, 0.05, 2.0]
    checkpoints = [{"path": f"step-{n}", "weight": rate} for n, rate in enumerate(rates)]
    tracin = recipes.recipe("tracin", projection={"kind": kind}, checkpoints=checkpoints)
    expected = sum(
        rate * own for rate, own in zip(rates, alone(recipes.recipe("graddot", projection={"kind": kind})), strict=True)
    )
    torch.testing.assert_close(scores(tracin, STATES), expected, rtol=1e-9, atol=1e-12)
    assert "at each checkpoint, its weight the learning rate" in tracin.unit


def test_tracin_of_one_checkpoint_is_graddot_times_its_weight():
    tracin = recipes.recipe("tracin", checkpoints=[{"weight": 0.25}])
    graddot = scores(recipes.recipe("graddot"), model=classifier(1))
    torch.testing.assert_close(scores(tracin, STATES[1:2]), 0.25 * graddot, rtol=1e-12, atol=0)


def test_one_checkpoint_of_weight_one_is_the_model_alone_to_the_last_bit():
    for name in ("graddot", "logra", "trackstar"):
        recipe = recipes.recipe(name)
        assert torch.equal(scores(recipe, STATES[:1]), scores(recipe))


@pytest.mark.parametrize("name", ["graddot", "logra", "whitened", "kfac", "ekfac"])
def test_checkpoints_without_weights_give_the_mean_each_under_its_own_curvature(name):
    recipe = recipes.recipe(name, factors={"labels": "empirical"})
    expected = torch.stack(alone(recipe)).mean(dim=0)
    torch.testing.assert_close(scores(recipe, STATES), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["logra", "kfac"])
def test_weights_under_a_curvature_make_a_weighted_mean_so_the_unit_stays(name):
    weights = [3.0, 1.0, 4.0]
    factors = {"labels": "empirical"}
    recipe = recipes.recipe(name, factors=factors, checkpoints=[{"weight": weight} for weight in weights])
    parts = zip(weights, alone(recipes.recipe(name, factors=factors)), strict=True)
    expected = sum(weight / 8 * own for weight, own in parts)
    torch.testing.assert_close(scores(recipe, STATES), expected, rtol=1e-9, atol=1e-14)
    assert recipe.unit == "nats per extra copy of the row"


def test_a_cosine_is_one_between_whole_rows_of_all_checkpoints():
    recipe = recipes.recipe("gradcos", projection={"kind": "none"})
    dots = recipes.recipe("graddot", projection={"kind": "none"})
    both = [TRAIN[0], QUERIES[0]]
    every = pairwise(classifier(), Labelled(), both, both, dots, checkpoints=STATES)
    lengths = every.diagonal().sqrt()
    expected = (every / lengths[:, None] / lengths[None])[9:, :9]
    torch.testing.assert_close(scores(recipe, STATES), expected, rtol=1e-9, atol=1e-12)


def test_rescaling_divides_each_checkpoints_scores_by_its_inverses_mean_absolute_entry():
    torch.manual_seed(3)
    rows, wanted = torch.randn(2, 40, 6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    recipe = recipes.recipe("logra", curvature={"blocks": "all", "rescale": True}, damping=0.2)
    block = ModuleColumns(name="layer", outputs=2, inputs=3, q=2, p=3, start=0, stop=6)
    parts, expected = [], torch.zeros(3, 40, dtype=torch.float64)
    for own, asked in zip(rows, wanted, strict=True):
        sums = FisherSums(blocks_of([block], "all"))
        sums.add(own)
        fisher = ProjectedFisher.prepare(sums, recipe.curvature.damping, torch.float64)
        parts.append(Comparison(recipe, fisher, 40))
        matrix = own.T @ own / 40
        inverse = torch.linalg.inv(matrix + 0.2 * matrix.trace() / 6 * torch.eye(6, dtype=torch.float64))
        expected += asked @ (inverse / inverse.abs().mean()) @ own.T / 2
    ensemble = Ensemble(tuple(parts))
    found = ensemble.query_vectors(torch.cat(list(wanted), 1)) @ ensemble.row_vectors(torch.cat(list(rows), 1)).T
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_rows_of_log_odds_without_weights_are_refused_and_so_are_weights_that_nobody_asked_for():
    rows = torch.ones(2, 3)
    with pytest.raises(RecipeError, match="measurement is log_odds, and no weights of its rows were given"):
        Comparison(recipes.recipe("graddot", measurement="log_odds"), None, 2).row_vectors(rows)
    with pytest.raises(RecipeError, match="measurement is log_likelihood, and weights of its rows were given"):
        Comparison(recipes.recipe("graddot"), None, 2).row_vectors(rows, torch.ones(2))


def test_columns_that_no_number_of_checkpoints_makes_are_refused():
    comparison = Comparison(recipes.recipe("graddot"), None, 2)
    with pytest.raises(RecipeError, match="7 columns aren't those of 2 checkpoints"):
        Ensemble((comparison, comparison)).row_vectors(torch.ones(2, 7))


def test_side_by_side_the_columns_of_a_checkpoint_are_named_and_follow_the_ones_before():
    modules = (
        ModuleColumns(name="a", outputs=1, inputs=4, q=1, p=4, start=0, stop=4),
        ModuleColumns(name="b", outputs=2, inputs=3, q=2, p=3, start=4, stop=10),
    )
    placed = [(module.name, module.start, module.stop) for module in side_by_side(modules, 2)]
    assert placed == [
        ("a (checkpoint 0)", 0, 4),
        ("b (checkpoint 0)", 4, 10),
        ("a (checkpoint 1)", 10, 14),
        ("b (checkpoint 1)", 14, 20),
    ]
    assert side_by_side(modules, 1) == modules
    assert of_one(side_by_side(modules, 12), 12) == of_one(modules, 1) == modules


def test_the_model_gets_its_weights_back_also_after_an_error():
    class Failing(Labelled):
        def measurement(self, model, batch):
            if torch.equal(model[0].weight, before["0.weight"]):
                return -self.example_loss(model, batch)
            raise KeyError("mid-way")

    model = classifier()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters = list(model.parameters())
    scores(recipes.recipe("graddot"), STATES[1:], model)
    with pytest.raises(KeyError):
        pairwise(model, Failing(), TRAIN, QUERIES, recipes.recipe("graddot"), checkpoints=STATES[1:])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


def test_a_checkpoint_of_another_architecture_is_refused_with_both_sides_before_any_is_loaded():
    other = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Identity(), nn.Linear(7, 3)).double().state_dict()
    message = (
        r"Checkpoint 1 isn't of this Sequential: it lacks 2\.bias, 2\.weight; it has 3\.bias, 3\.weight, for which the "
        r"model has no place; 0\.weight is \(7, 5\), the model's is \(6, 5\), 0\.bias is \(7,\), the model's is \(6,\)"
    )
    with pytest.raises(ModelError, match=message):
        scores(recipes.recipe("graddot"), [STATES[0], other])


@pytest.mark.parametrize(
    ("checkpoints", "states", "message"),
    [
        ([{"path": "a"}, {"path": "b"}], None, r"names 2 checkpoints, and in memory.*checkpoints=\[state dict"),
        ([{"path": "a"}, {"path": "b"}], STATES, "names 2 checkpoints, and there are 3"),
    ],
)
def test_checkpoints_other_than_the_recipes_are_refused(checkpoints, states, message):
    with pytest.raises(RecipeError, match=message):
        scores(recipes.recipe("tracin", checkpoints=checkpoints), states)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"checkpoints": [{"weight": 1.0}, {"path": "b"}]}, "some checkpoints have a weight and some have none"),
        ({"checkpoints": [{"path": "a"}, {"path": "a"}]}, "named twice among a, a"),
        ({"checkpoints": [{"weight": 0}]}, "greater than 0"),
        ({"checkpoints": [{"path": "a"}], "exact": {"kind": "ekfac"}}, "not several checkpoints.*exact none"),
    ],
)
def test_checkpoints_that_make_no_sum_are_refused(parts, message):
    with pytest.raises(RecipeError, match=message):
        recipes.recipe("tracin", **parts)


def test_no_checkpoints_at_all_are_refused():
    with pytest.raises(ModelError, match="There are no checkpoints"):
        scores(recipes.recipe("graddot"), [])


def test_checkpoints_of_a_language_model_are_its_own_scores_each(tiny_model, ragged_batch):
    model = tiny_model("llama")
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    moved = {name: weight + 0.05 * torch.ones_like(weight) for name, weight in own.items()}
    recipe = recipes.recipe("graddot")
    found = pairwise(model, CausalLM(), [ragged_batch], [ragged_batch], recipe, checkpoints=[own, moved])
    other = tiny_model("llama")
    other.load_state_dict(moved)
    each = [pairwise(one, CausalLM(), [ragged_batch], [ragged_batch], recipe) for one in (model, other)]
    torch.testing.assert_close(found, (each[0] + each[1]) / 2, rtol=1e-9, atol=1e-12)
