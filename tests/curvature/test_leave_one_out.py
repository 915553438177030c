"""Leave-one-out, exactly: the one test that fixes sign, 1/N and every scale at once.

Least squares at its optimum, loss (y − ŷ)², the prediction measured, the exact Fisher from pseudo-targets ŷ ± √½ and no
damping: f(θ) − f(θ₋ᵢ) = score_i / (1 − h_i) with h_i the leverage, x_iᵀ (Σ x xᵀ)⁻¹ x_i.
"""

import pytest
import torch
from torch import Tensor, nn

from influence.model.layers import LayerSettings
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from tests.reference.toys import SquaredError, network


def optimum(x: Tensor, y: Tensor) -> Tensor:
    """The minimiser of Σ (y − xᵀθ)²."""
    return torch.linalg.lstsq(x, y).solution


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_a_score_over_one_minus_the_leverage_is_what_leaving_the_row_out_takes_away(name, bias, batches):
    rows, width = 12, 4
    x, y = torch.randn(rows, width, dtype=torch.float64), torch.randn(rows, 1, dtype=torch.float64)
    asked = torch.randn(3, width, dtype=torch.float64)
    model = network(width, 1, bias=bias)

    seen, wanted = x, asked
    if bias:
        seen, wanted = (torch.cat([part, part.new_ones(len(part), 1)], dim=1) for part in (x, asked))
    theta = optimum(seen, y)
    with torch.no_grad():
        model[0].weight.copy_(theta[:width].T)
        if bias:
            model[0].bias.copy_(theta[width:, 0])

    train = list(zip(x.chunk(batches), y.chunk(batches), strict=True))
    method = recipe(name, damping=0)
    assert method.factors.labels == "sampled"
    scores = pairwise(model, SquaredError(), train, [(asked, torch.zeros(3, 1))], method, LayerSettings(bias=bias))

    leverage = (seen @ torch.linalg.inv(seen.T @ seen) * seen).sum(dim=1)
    for row in range(rows):
        others = torch.arange(rows) != row
        without = optimum(seen[others], y[others])
        change = (wanted @ (theta - without)).squeeze(1)
        torch.testing.assert_close(scores[:, row] / (1 - leverage[row]), change, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_a_score_is_the_derivative_of_the_optimum_by_the_weight_of_the_row(name):
    """The unit, nats per extra copy: by finite differences of a refit with the row's weight raised."""
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    asked = torch.randn(3, 4, dtype=torch.float64)
    model, theta, step = network(4, 1), optimum(x, y), 1e-6
    with torch.no_grad():
        model[0].weight.copy_(theta.T)
    scores = pairwise(model, SquaredError(), [(x, y)], [(asked, torch.zeros(3, 1))], recipe(name, damping=0))
    for row in range(12):
        weights = torch.ones(12, 1, dtype=torch.float64)
        weights[row] += step
        refitted = optimum(weights.sqrt() * x, weights.sqrt() * y)
        torch.testing.assert_close(scores[:, row], (asked @ (refitted - theta)).squeeze(1) / step, rtol=1e-4, atol=1e-6)


class EverySign(SquaredError):
    """Half of the rows is pushed along (1, 1), half along (1, −1): S is exact where the halves are alike."""

    def sampled_loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        predicted = model(batch[0])
        signs = torch.ones_like(predicted)
        signs[len(signs) // 2 :, 1] = -1
        return self.pushed(predicted, signs)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_two_outputs_and_a_row_that_is_there_twice_are_left_out_exactly_too(name):
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    model, theta = network(3, 2), optimum(x, y)
    with torch.no_grad():
        model[0].weight.copy_(theta.T)
    doubled = [(torch.cat([x, x]), torch.cat([y, y]))]
    scores = pairwise(model, EverySign(), doubled, [(x[:2], torch.zeros(2, 2))], recipe(name, damping=0))
    assert scores.shape == (2, 24)
    torch.testing.assert_close(scores[:, :12], scores[:, 12:], rtol=1e-12, atol=0)
    # Each of two copies counts for half; together they are one row of the data without copies.
    both = scores[:, :12] + scores[:, 12:]
    leverage = (x @ torch.linalg.inv(x.T @ x) * x).sum(dim=1)
    for row in range(12):
        others = torch.arange(12) != row
        change = (x[:2] @ (theta - optimum(x[others], y[others]))).sum(dim=1)
        torch.testing.assert_close(both[:, row] / (1 - leverage[row]), change, rtol=1e-10, atol=1e-10)
