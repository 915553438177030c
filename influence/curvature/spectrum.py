"""A summary of one module's eigenvalues under its damping, for people to read."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """What one module's eigenvalues look like.

    Attributes:
        module: Its name.
        largest: The largest eigenvalue.
        mean: The mean eigenvalue.
        damping: λ.
        trace_share_under_damping: The share of the trace in eigenvalues below λ: how much the damping decides.
    """

    module: str
    largest: float
    mean: float
    damping: float
    trace_share_under_damping: float


def spectrum_of(module: str, values: Tensor, damping: float) -> Spectrum:
    """Return the summary of eigenvalues [n] under λ."""
    trace = float(values.sum())
    under = float(values[values < damping].sum()) / trace if trace else 0.0
    return Spectrum(module, float(values.max()), float(values.mean()), damping, under)
