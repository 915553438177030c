"""The factors of a run on their way into its projection: which of them a checkpoint's rows are projected with."""

from collections.abc import Sequence

from influence.artifacts.tensors import load_all
from influence.capture.spec import CaptureSpec
from influence.curvature.covariance import widths_of
from influence.curvature.kfac import Eigenbasis
from influence.curvature.whitening import fold_for
from influence.gradients.projection import Projection
from influence.model.layers import TrackedLayer


def projection_of(spec: CaptureSpec, layers: Sequence[TrackedLayer], checkpoint: int) -> Projection:
    """Return what projects the rows of one checkpoint, with that checkpoint's own factors folded in where they are.

    Raises:
        DigestMismatch: A file of the factors is missing, damaged, or of another fit.
        CurvatureError: They are not those of these layers.
    """
    if not spec.factors:
        return Projection(spec.projection, checkpoint=checkpoint)
    held = spec.factors[checkpoint]
    basis = Eigenbasis.from_tensors(widths_of(layers), held.settings, load_all(held.bases, held.fingerprint))
    return Projection(spec.projection, fold_for(spec.projection, basis, held.rows), checkpoint)
