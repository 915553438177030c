"""The one unit norm: exact, safe from overflow, and honest about zeros and NaN."""

import pytest
import torch

from influence.errors import CaptureError
from influence.vectors.unit_norm import unit_norm


def test_direction_times_length_is_the_vector():
    vectors = torch.randn(5, 40, dtype=torch.float64) * torch.logspace(-20, 20, 5, dtype=torch.float64)[:, None]
    unit, norms = unit_norm(vectors)
    torch.testing.assert_close(unit * norms[:, None], vectors)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_squares_that_would_overflow_do_not():
    unit, norms = unit_norm(torch.full((1, 4), 1e30))
    torch.testing.assert_close(norms, torch.tensor([2e30]))
    assert torch.equal(unit.half(), torch.full((1, 4), 0.5, dtype=torch.float16))


def test_a_zero_vector_stays_zero_and_has_length_zero():
    unit, norms = unit_norm(torch.zeros(2, 3))
    assert not unit.any()
    assert not norms.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_vectors_that_are_not_finite_are_refused_with_their_positions(bad):
    vectors = torch.ones(3, 2)
    vectors[2, 1] = bad
    with pytest.raises(CaptureError, match=r"positions \[2\]"):
        unit_norm(vectors)
