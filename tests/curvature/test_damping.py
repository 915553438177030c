"""Every kind of damping, from a module's eigenvalues; what a kind lacks or doesn't know is refused."""

import pytest
import torch
from pydantic import ValidationError

from influence.curvature.damping import MOST_SHARE, Damping
from influence.curvature.spectrum import spectrum_of
from influence.errors import CurvatureError, RecipeError
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM

EIGENVALUES = torch.tensor([[4.0, 1.0], [3.0, 2.0]], dtype=torch.float64)
TRAINING = {"kind": "training", "rate": 1e-3, "steps": 250, "batch": 10}


@pytest.mark.parametrize(
    ("settings", "damping"),
    [
        ({}, 0.25),
        ({"value": 2.0}, 5.0),
        ({"kind": "absolute", "value": 0.3}, 0.3),
        ({"kind": "trace", "value": 0.0}, 0.0),
        ({"kind": "trace", "value": 0.05}, 1.0),
        ({"kind": "trace", "value": 0.3}, 2.0),
        ({"kind": "trace", "value": 0.9}, 4.0),
        (TRAINING, 2.0),
    ],
)
def test_each_kind_takes_its_damping_from_the_eigenvalues(settings, damping):
    assert Damping(**settings).resolve(EIGENVALUES) == pytest.approx(damping)


@pytest.mark.parametrize("kind", ["relative", "trace"])
def test_relative_and_trace_scale_with_the_loss(kind):
    damping = Damping(kind=kind, value=0.4)
    assert damping.resolve(9 * EIGENVALUES) == pytest.approx(9 * damping.resolve(EIGENVALUES))


def test_an_adamw_step_moves_a_row_as_far_as_the_damping_of_its_training_says():
    """One parameter of noise only: T steps of rate η from the noise of B rows, one of which counts once more."""
    rows, batch, rate, epochs = 4000, 8, 1e-5, 3
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(rows, generator=generator, dtype=torch.float64)
    orders = [torch.randperm(rows, generator=generator) for _ in range(epochs)]

    def trained(extra: float) -> torch.Tensor:
        weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0, betas=(0.0, 0.9999), eps=1e-12)
        weights = torch.ones(rows, dtype=torch.float64)
        weights[7] += extra
        for order in orders:
            for chosen in order.split(batch):
                weight.grad = (weights[chosen] * gradients[chosen]).sum() / batch
                optimiser.step()
        return weight.detach()

    moved = float(trained(1e-4) - trained(-1e-4)) / 2e-4
    damping = Damping(kind="training", rate=rate, steps=epochs * rows // batch, batch=batch)
    predicted = -float(gradients[7]) / rows / damping.resolve(gradients.square().mean())
    assert moved == pytest.approx(predicted, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "training", "rate": 1e-3}, "needs steps and batch"),
        ({**TRAINING, "value": 0.5}, "takes no value"),
        ({"rate": 1e-3}, "rate mean nothing to damping of kind relative"),
        ({"kind": "trace", "value": 1.0}, "less than 1"),
        ({"kind": "relative", "value": -1.0}, "greater than or equal to 0"),
    ],
)
def test_what_a_kind_lacks_or_does_not_know_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Damping(**settings)


@pytest.mark.parametrize("least", [0.0, 0.01, 3.0])
@pytest.mark.parametrize("budget", [0.1, 4.0, 50.0, 1e9])
def test_a_bounded_damping_is_the_least_that_keeps_the_dimension_within_the_rows_losses(least, budget):
    generator = torch.Generator().manual_seed(0)
    modules = [torch.randn(size, generator=generator, dtype=torch.float64).exp() ** 3 for size in (90, 40)]
    found = Damping(kind="bounded", value=least).within(modules, budget)

    def dimension(share):
        return sum(float((values / (values + share * values.mean())).sum()) for values in modules)

    assert found.kind == "relative"
    assert found.value >= least
    assert dimension(found.value) <= budget or found.value == MOST_SHARE
    assert found.value <= MOST_SHARE
    if found.value > max(least, 1e-12):
        assert dimension(found.value / 1.1) > budget
    assert Damping(value=0.2).within(modules, None) == Damping(value=0.2)
    with pytest.raises(CurvatureError, match="needs the rows' mean loss"):
        Damping(kind="bounded").within(modules, None)


def test_scores_in_memory_are_bounded_by_the_rows_losses(tiny_model, ragged_batch):
    model, task = tiny_model("gptneox"), CausalLM()
    loss = float(task.example_loss(model, ragged_batch).sum())
    found = {}
    for kind in ("relative", "bounded"):
        method = recipe("kfac", curvature={"damping": {"kind": kind, "value": 1e-4}}, factors={"labels": "empirical"})
        found[kind] = pairwise(model, task, [ragged_batch], [ragged_batch], method).diagonal().sum().item()
    assert found["relative"] > loss
    assert found["bounded"] < found["relative"] / 2


def test_a_projected_fisher_has_no_damping_of_a_training():
    for damping in (TRAINING, {"kind": "bounded"}):
        with pytest.raises(RecipeError, match=r"is of whole gradients' curvature.*nearest"):
            recipe("logra", curvature={"damping": damping})
    assert "250 AdamW steps of 10 rows at rate 0.001" in recipe("ekfac", curvature={"damping": TRAINING}).summary


def test_a_spectrum_counts_the_directions_that_the_damping_decides():
    values = torch.tensor([1e-9] * 98 + [1.0, 1.0], dtype=torch.float64)
    found = spectrum_of("layer", values, 0.01)
    assert found.trace_share_under_damping < 1e-6
    assert found.directions_under_damping == 0.98
    assert found.dimension == pytest.approx(2 / 1.01, rel=1e-4)
    assert spectrum_of("layer", values, 0.0).dimension == 100
