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
        trace_share_under_damping: The share of the trace in eigenvalues below λ.
        directions_under_damping: The share of the eigenvalues that are below λ: there 1/λ decides a score and not the
            curvature, also where they hold next to nothing of the trace.
        dimension: Σ Λ/(Λ + λ). Divided by the rows it is the mean self-influence of a row in nats, of labels drawn from
            the model: more than the mean row's loss can't be, so that scores are then a rank only.
    """

    module: str
    largest: float
    mean: float
    damping: float
    trace_share_under_damping: float
    directions_under_damping: float
    dimension: float


def spectrum_of(module: str, values: Tensor, damping: float) -> Spectrum:
    """Return the summary of eigenvalues [n] under λ."""
    trace = float(values.sum())
    under = float(values[values < damping].sum()) / trace if trace else 0.0
    below = float((values < damping).double().mean())
    dimension = float((values / (values + damping)).nan_to_num(1.0).sum())
    return Spectrum(module, float(values.max()), float(values.mean()), damping, under, below, dimension)
