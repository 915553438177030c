"""TRAK against its authors' package, and TracIn, through the in-memory scores."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from trak import TRAKer
from trak.projectors import BasicProjector, ProjectionType
from trak.score_computers import BasicScoreComputer

import influence.recipes as recipes
from influence.curvature.damping import Damping
from influence.errors import CurvatureError, RecipeError, TaskError
from influence.query.pairwise import pairwise
from influence.task import CausalLM, SequenceClassification
from tests.gradients.conftest import examples

ROWS, QUERIES, DIMS, BLOCK, SEED = 160, 24, 16, 6, 3
WEIGHTS = 8 * 12 + 12 * 4


class Labelled:
    """Cross-entropy of batches (x [N, I], label [N]), with the log-odds written out."""

    def example_loss(self, model: Any, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def log_odds(self, model: Any, batch: Any) -> torch.Tensor:
        log_p = -self.example_loss(model, batch)
        return log_p - (1 - log_p.exp()).log()

    def residual(self, model: Any, batch: Any) -> torch.Tensor:
        return 1 - (-self.example_loss(model, batch)).exp()


def classifier(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False)).to(dtype).eval()


def states(model: nn.Module, count: int) -> list[dict[str, torch.Tensor]]:
    """Checkpoints: the model's own weights, and each time other ones."""
    generator = torch.Generator().manual_seed(5)
    found = [{name: weight.clone() for name, weight in model.state_dict().items()}]
    while len(found) < count:
        found.append({n: w + 0.3 * torch.randn(w.shape, generator=generator).to(w) for n, w in found[-1].items()})
    return found


def data(count: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 8, generator=generator).to(dtype), torch.randint(4, (count,), generator=generator)


def batches(batch: tuple[torch.Tensor, torch.Tensor], size: int) -> list[tuple[torch.Tensor, ...]]:
    return list(zip(*(part.split(size) for part in batch), strict=True))


class Unscaled(BasicScoreComputer):
    """traker's own computer without the division of the inverse by its mean absolute value."""

    def get_x_xtx_inv(self, grads: torch.Tensor, xtx: torch.Tensor) -> torch.Tensor:
        return grads @ torch.linalg.inv(xtx + self.lambda_reg * torch.eye(len(xtx)))


def by_traker(folder: Any, checkpoints: Any, entries: str, damping: float, computer: Any) -> torch.Tensor:
    """What the package itself finds, [queries, rows]."""
    model, train, queries = classifier(), data(ROWS, 1), data(QUERIES, 2)
    projector = BasicProjector(WEIGHTS, DIMS, SEED, ProjectionType(entries), torch.device("cpu"), BLOCK)
    traker = TRAKer(
        model,
        "image_classification",
        ROWS,
        save_dir=str(folder),
        device="cpu",
        projector=projector,
        score_computer=computer,
        use_half_precision=False,
        lambda_reg=damping,
        logging_level=100,
    )
    for number, state in enumerate(checkpoints):
        traker.load_checkpoint(state, model_id=number)
        for batch in batches(train, 50):
            traker.featurize(batch, num_samples=len(batch[0]))
    traker.finalize_features()
    for number, state in enumerate(checkpoints):
        traker.start_scoring_checkpoint("queries", state, model_id=number, num_targets=QUERIES)
        traker.score(queries, num_samples=QUERIES)
    return torch.tensor(traker.finalize_scores("queries")).T


def trak(entries: str = "rademacher", damping: float = 0.0, **parts: Any) -> recipes.Recipe:
    """Our recipe of the same scores; traker's λ stands beside ΦᵀΦ / (weights), and ours beside ΦᵀΦ / (N·k)."""
    absolute = Damping(kind="absolute", value=damping * WEIGHTS / (ROWS * DIMS)).model_dump()
    projection = {"dims": DIMS, "block": BLOCK, "seed": SEED, "entries": entries}
    return recipes.recipe("trak", projection=projection, curvature={"damping": absolute, **parts})


def ours(recipe: recipes.Recipe, checkpoints: Any, task: Any = None) -> torch.Tensor:
    train, queries = batches(data(ROWS, 1), 70), batches(data(QUERIES, 2), 10)
    return pairwise(classifier(), task or Labelled(), train, queries, recipe, checkpoints=checkpoints)


def slowly(model: Any, batch: Any) -> torch.Tensor:
    """Gradients of the log-odds, [N, weights], one example at a time."""
    rows = []
    for one in batches(batch, 1):
        model.zero_grad()
        Labelled().log_odds(model, one).sum().backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    return torch.stack(rows)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize(("count", "entries"), [(1, "rademacher"), (1, "normal"), (3, "rademacher")])
def test_scores_are_those_of_traker_without_its_rescaling(tmp_path, count, entries, damping):
    checkpoints = states(classifier(), count)
    expected = by_traker(tmp_path, checkpoints, entries, damping, Unscaled)
    assert error(ours(trak(entries, damping), checkpoints), expected) < 1e-5
    assert error(ours(trak(entries, 0.01 - damping), checkpoints), expected) > 3e-5


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("count", [1, 3])
def test_rescaled_scores_are_those_of_traker_as_it_comes_times_weights_over_dims(tmp_path, count, damping):
    checkpoints = states(classifier(), count)
    expected = by_traker(tmp_path, checkpoints, "rademacher", damping, BasicScoreComputer)
    assert error(ours(trak(damping=damping, rescale=True), checkpoints) * DIMS / WEIGHTS, expected) < 1e-5


def test_a_score_is_the_mean_over_checkpoints_of_features_times_the_mean_of_their_residuals():
    model, task = classifier(torch.float64), Labelled()
    train, queries = data(30, 1, torch.float64), data(4, 2, torch.float64)
    checkpoints = states(model, 2)
    recipe = recipes.recipe("trak", projection={"dims": 12, "block": 12}, damping=0.2)
    features, residuals = torch.zeros(4, 30, dtype=torch.float64), torch.zeros(30, dtype=torch.float64)
    for number, state in enumerate(checkpoints):
        own = classifier(torch.float64)
        own.load_state_dict(state)
        phi, wanted = (sketched(own, batch, number) for batch in (train, queries))
        fisher = phi.T @ phi / 30
        damped = fisher + 0.2 * fisher.trace() / 12 * torch.eye(12, dtype=torch.float64)
        features += wanted @ torch.linalg.inv(damped) @ phi.T / 30 / 2
        residuals += task.residual(own, train).detach() / 2
    found = pairwise(model, task, batches(train, 7), batches(queries, 3), recipe, checkpoints=checkpoints)
    torch.testing.assert_close(found, features * residuals, rtol=1e-9, atol=1e-12)
    halved = recipe.model_copy(update={"curvature": recipe.curvature.model_copy(update={"side": "both"})})
    again = pairwise(model, task, [train], [queries], halved, checkpoints=checkpoints)
    torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-12)


def sketched(model, batch, checkpoint):
    """The same times the matrix that trak draws."""
    projector = BasicProjector(WEIGHTS, 12, 0, "rademacher", "cpu", 12, torch.float64, checkpoint)
    return projector.project(slowly(model, batch), model_id=checkpoint) / 12**0.5


def test_a_row_of_one_token_times_its_residual_is_the_gradient_of_its_loss():
    class Asked(Labelled):
        """Measures the log-odds, and leaves rows as gradients of the loss."""

        def measurement(self, model, batch):
            return self.log_odds(model, batch)

    model, train, queries = classifier(torch.float64), data(9, 1, torch.float64), data(4, 2, torch.float64)
    weighted = recipes.recipe("graddot", measurement="log_odds")
    found = pairwise(model, Labelled(), [train], [queries], weighted)
    plain = pairwise(model, Asked(), [train], [queries], recipes.recipe("graddot"))
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)


def test_a_language_model_has_trak_scores_and_a_row_without_scored_tokens_scores_zero(tiny_model, ragged_batch):
    model, recipe = tiny_model("llama"), recipes.recipe("trak", projection={"dims": 20, "block": 20}, damping=0.1)
    labels = ragged_batch.labels.clone()
    labels[1] = -100
    found = pairwise(model, CausalLM(), [replace(ragged_batch, labels=labels)], [ragged_batch], recipe)
    assert torch.isfinite(found).all()
    assert (found[:, 1] == 0).all()
    assert (found.diagonal()[[0, 2, 3]] > 0).all()


def test_a_classifier_of_texts_has_trak_scores(tiny_model, ragged_batch):
    recipe = recipes.recipe("trak", projection={"dims": 20, "block": 20}, damping=0.1)
    found = pairwise(tiny_model("bert"), SequenceClassification(), examples(ragged_batch), [ragged_batch], recipe)
    assert (found.diagonal() > 0).all()


def test_a_weight_drops_out_of_a_cosine():
    model, train, queries = classifier(torch.float64), data(9, 1, torch.float64), data(4, 2, torch.float64)
    found = pairwise(model, Labelled(), [train], [queries], recipes.recipe("gradcos", measurement="log_odds"))
    rows, wanted = slowly(model, train), slowly(model, queries)
    expected = nn.functional.normalize(wanted, dim=1) @ nn.functional.normalize(rows, dim=1).T
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_fewer_rows_than_dims_without_damping_are_refused():
    recipe = recipes.recipe("trak", projection={"dims": 40})
    with pytest.raises(CurvatureError, match=r"all modules \(40 columns\) is singular and the damping is 0"):
        pairwise(classifier(), Labelled(), [data(9, 1)], [data(2, 2)], recipe)


def test_a_task_without_log_odds_is_refused_with_what_it_lacks():
    class Plain:
        example_loss = Labelled.example_loss
        log_odds = Labelled.log_odds

    with pytest.raises(TaskError, match=r"Plain has no residual\(model, batch\), which the measurement log_odds needs"):
        pairwise(classifier(), Plain(), [data(9, 1)], [data(2, 2)], trak())
    with pytest.raises(TaskError, match="Object has no log_odds and no residual"):
        pairwise(classifier(), type("Object", (), {"example_loss": Labelled.example_loss})(), [data(9, 1)], [], trak())


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("trak", {"projection": {"rows": "whitened"}}, "rows mean nothing to kind trak: leave them out, or choose"),
        ("trak", {"projection": {"dims": 500, "block": 4}}, "125 blocks.*set block to 5 or more"),
        ("whitened", {"measurement": "log_odds"}, "Kronecker factors are those of the loss.*nearest.*curvature fisher"),
        ("ekfac", {"measurement": "log_odds"}, "Kronecker factors are those of the loss"),
        ("trak", {"exact": {"kind": "ekfac"}}, "Kronecker factors are those of the loss.*exact none"),
        ("logra", {"curvature": {"rescale": True}}, "rescale divides one inverse.*blocks all"),
        ("kfac", {"projection": {"kind": "trak", "dims": 8}}, "curvature kfac needs whole gradients"),
    ],
)
def test_parts_that_cannot_be_combined_say_why_and_what_can(name, parts, message):
    with pytest.raises(RecipeError, match=message):
        recipes.recipe(name, **parts)


@pytest.mark.parametrize(
    ("parts", "unit"),
    [
        ({}, "nats of log-odds per extra copy of the row, p(1−p) taken as 1"),
        ({"curvature": {"rescale": True}}, "rescaled as traker does (no unit)"),
        ({"comparison": "cosine"}, "cosine (no unit)"),
        (
            {"curvature": {"kind": "identity", "blocks": "module"}},
            "nats of log-odds per unit of learning rate (one SGD step on the row's log-odds times 1−p)",
        ),
    ],
)
def test_scores_say_their_unit(parts, unit):
    assert recipes.recipe("trak", **parts).unit == unit


def test_the_summary_names_every_part():
    recipe = recipes.recipe("trak", checkpoints=[{"path": "a"}, {"path": "b"}])
    assert recipe.summary == (
        "trak: log-odds, raw gradients, dense rademacher projection to 2048 by trak's BasicProjector (seed 0), "
        "curvature empirical projected Fisher over all columns, damping 0 of the mean eigenvalue, dot, rows times 1−p, "
        "2 checkpoints"
    )
