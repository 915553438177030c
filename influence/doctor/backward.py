"""The capture against one ordinary backward pass, which forms weight gradients: are they the same, and of how much?"""

from collections.abc import Iterator

from influence.coverage import Coverage
from influence.doctor.check import Check
from influence.doctor.subject import Subject
from influence.errors import ModelError
from influence.gradients.projection import Projection, ProjectionSettings
from influence.gradients.weight_gradients import WeightGradients, weight_gradients
from influence.model.layers import LayerSettings
from influence.model.trained import REFUSED, WARNED, coverage_of, trained_parameters


def ordinary_backward(subject: Subject) -> Iterator[Check]:
    """Compare every tracked layer with one backward pass over the shortest row, and count what it reaches."""
    session, task = subject.session, subject.session.task
    part = min(subject.parts, key=lambda part: len(part.input_ids))
    # A dense sketch has no columns of a single layer: the capture that it is made of is looked at two-sided.
    settings = session.spec.projection
    projection = Projection(ProjectionSettings() if settings.kind == "trak" else settings)
    trained, batch = trained_parameters(session.model), subject.batch([part])
    found = weight_gradients(session.model, session.layers, task.example_loss, batch, trained, projection)
    yield _same(subject, found)
    globs = session.spec.model.layers
    yield _covered(coverage_of(session.model, globs, session.layers, found.reached), globs)


def _same(subject: Subject, found: WeightGradients) -> Check:
    worst = max(found.errors, key=lambda name: found.errors[name])
    error, limit = found.errors[worst], subject.tolerance
    fine = error <= limit
    remedy = "The capture differs from autograd's own weight gradients."
    if not fine:
        try:
            found.check()
            remedy += " Exclude layers that are used in an unusual way (model.layers.exclude)."
        except ModelError as refused:
            remedy = str(refused)
    return Check(
        "ordinary backward",
        "pass" if fine else "fail",
        f"error {error:.2g} on {len(found.errors)} layers of one row" + ("" if fine else f", the worst in {worst}"),
        f"at most {limit:g} ({subject.session.spec.model.dtype})",
        remedy,
        value=error,
        limit=limit,
    )


def _covered(coverage: Coverage, settings: LayerSettings) -> Check:
    """Which share of what was trained is tracked; a build refuses less than half of the body."""
    share = coverage.body_share
    refused = share < REFUSED and not settings.allow_partial
    return Check(
        "coverage",
        "fail" if refused else "note" if share < WARNED else "pass",
        coverage.summary,
        f"at least {WARNED:.0%} of the body",
        f"Not tracked: {coverage.missing()}. Track more by name (model.layers.include, for embeddings)"
        + (", or accept it: model.layers.allow_partial: true." if refused else "."),
        value=share,
        limit=WARNED,
    )
