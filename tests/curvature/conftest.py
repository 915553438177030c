"""Factors and eigenvalues fitted in one call, for the curvature tests."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from influence.curvature.covariance import CovarianceFit, CovarianceSums, FactorSettings
from influence.curvature.ekfac import EigenvalueFit, EigenvalueSums
from influence.curvature.kfac import Eigenbasis, decompose
from influence.gradients.hooks import Measure
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import TrackedLayer
from tests.reference.microbatch import one_backward_per_example

DEFAULT = FactorSettings()
WHOLE = Projection(ProjectionSettings(kind="none"))


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    """Random numbers are the same at every run of a test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def covariances(
    model: nn.Module,
    layers: Sequence[TrackedLayer],
    measure: Measure,
    batches: Iterable[Any],
    settings: FactorSettings = DEFAULT,
) -> CovarianceSums:
    """The sums over batches, masked by their attention mask where they have one."""
    with CovarianceFit(model, layers, settings) as fit:
        for batch in batches:
            fit.add(measure, batch, getattr(batch, "attention_mask", None))
    return fit.sums


def squares(
    model: nn.Module, layers: Sequence[TrackedLayer], measure: Measure, batches: Iterable[Any], basis: Eigenbasis
) -> EigenvalueSums:
    """EK-FAC's second pass over batches."""
    with EigenvalueFit(model, layers, basis) as fit:
        for batch in batches:
            fit.add(measure, batch)
    return fit.sums


def eigenbasis(
    model: nn.Module, layers: Sequence[TrackedLayer], measure: Measure, batches: Iterable[Any]
) -> Eigenbasis:
    """The decomposed factors, float64."""
    return decompose(covariances(model, layers, measure, batches), torch.float64)


def gradients(
    model: nn.Module, layers: Sequence[TrackedLayer], measure: Measure, examples: Sequence[Any]
) -> tuple[torch.Tensor, ...]:
    """Whole gradients by one backward pass an example, [N, O·I] of each layer."""
    rows = one_backward_per_example(model, layers, WHOLE, measure, examples)
    return rows.split([layer.outputs * layer.inputs for layer in layers], dim=1)
