"""Second opinions: three of the checks of cleanlab's Datalab, over this run's neighbours and its model's probabilities.

    cleanlab_label            confident learning: the label beside the probabilities that the run's own classifier gives
    cleanlab_outlier          the mean distance to the nearest rows, beside the usual one
    cleanlab_near_duplicate   the distance to the nearest row, beside the usual one

They say what cleanlab says, in our direction: its scores are turned round. The distance of two rows is one minus the
cosine of their gradients. A classifier's gradients of one class are alike, so that near duplicates by them are rows of
the same effect, not of the same text; and probabilities are in-sample where the model was trained on the rows. Hence
all three only suggest to look, and are made only where they are named. cleanlab holds everything in memory: about 100
bytes a row and neighbour, and the probabilities.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from influence.errors import InfluenceError, MissingExtra
from influence.issues.finding import Case, Finding
from influence.issues.knn_graph import knn_matrix
from influence.issues.neighbors import Near
from influence.issues.subject import Subject

EXTRA = "influence[cleanlab]"
MISSING = f"It needs cleanlab: pip install '{EXTRA}'."
NEAREST = 10
"""Neighbours that cleanlab looks at, where the graph has as many."""
SHOWN = 3
"""Nearest rows that are named as evidence."""
BLOCK = 4096


class LabelSettings(BaseModel):
    """Nothing can be chosen: confident learning finds its own thresholds, one a class."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FarSettings(BaseModel):
    """From where on cleanlab calls a row an outlier.

    Attributes:
        threshold: cleanlab's: a row is one where its mean distance is above the third quartile and 1/threshold − 1
            interquartile ranges; unset, its default of 0.37.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = Field(default=None, gt=0, le=1)


class CloseSettings(BaseModel):
    """From where on cleanlab calls a row a near duplicate.

    Attributes:
        threshold: Times the median distance of rows to their nearest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(default=0.13, gt=0)


def lacks_labels(subject: Subject) -> str | None:
    """Say what `cleanlab_label` needs and isn't there."""
    if find_spec("cleanlab") is None:
        return MISSING
    if subject.run.config.model.kind != "sequence_classification":
        return "It needs a classifier, whose probabilities it looks at, and this run is of a language model."
    return None if len(subject.labels.names) > 1 else "It needs rows of two labels or more."


def lacks_rows(subject: Subject) -> str | None:
    """Say what the checks of distances need and isn't there."""
    if find_spec("cleanlab") is None:
        return MISSING
    return None if subject.rows > 1 else "It needs two rows or more."


def check_label(subject: Subject, settings: LabelSettings) -> Finding:
    """Flag rows whose label the run's own classifier contradicts confidently."""
    probabilities, classes = _probabilities(subject)
    known = np.flatnonzero(np.isfinite(probabilities[:, 0]))
    present, codes = np.unique(classes[known], return_inverse=True)
    if len(present) < 2:
        raise InfluenceError(f"The rows of {subject.run.path} that have a token are of one class: nothing to compare.")
    # Datalab wants a column for each class that occurs, and rows that add up to 1.
    shown = probabilities[known][:, present].astype(np.float64)
    shown /= np.maximum(shown.sum(axis=1, keepdims=True), 1e-300)
    issues, _ = _datalab("label", {}, codes, pred_probs=shown)
    expected = present[np.argmax(shown, axis=1)]
    names = _names(subject, classes)
    scores, flagged = _spread(issues, "label", known, subject.rows)
    likely = dict(zip(known.tolist(), expected.tolist(), strict=True))
    cases = {
        row: Case((), "review", f"review: the model expects {names.get(likely[row], likely[row])!r} (cleanlab)")
        for row in flagged.tolist()
    }
    told = "Confident learning's: rows are flagged where a class is more probable than is usual for rows labelled with "
    return Finding(
        "cleanlab_label",
        scores,
        cases,
        "One minus cleanlab's label quality, the probability of the row's own label by the run's model, in-sample.",
        f"{told}it, and more so than the row's own; cleanlab {_version()} found {len(cases):,}, with a threshold a "
        "class.",
    )


def check_outlier(subject: Subject, settings: FarSettings) -> Finding:
    """Flag rows whose nearest rows are far."""
    chosen = {"k": _nearest(subject)} | ({} if settings.threshold is None else {"threshold": settings.threshold})
    issues, info = _datalab("outlier", chosen, _numbered(subject), knn_graph=_graph(subject))
    scores, flagged = _spread(issues, "outlier", np.arange(subject.rows), subject.rows)
    # Zero rows have stand-ins for neighbours, whose distances say nothing.
    scores[subject.norms == 0] = np.nan
    cases = _near_cases(subject, flagged, "review: far from all rows (cleanlab)", lambda near: near.alike[:, :SHOWN])
    return Finding(
        "cleanlab_outlier",
        scores,
        cases,
        f"One minus cleanlab's score of the mean distance to the {_nearest(subject)} nearest rows.",
        f"Flagged where that distance is above {info['issue_threshold']:.3g}: the third quartile and "
        f"{1 / info['threshold'] - 1:.3g} interquartile ranges of all (cleanlab {_version()}).",
    )


def check_near_duplicate(subject: Subject, settings: CloseSettings) -> Finding:
    """Flag rows whose nearest row is very near."""
    chosen = {"k": _nearest(subject), "threshold": settings.threshold}
    issues, info = _datalab("near_duplicate", chosen, _numbered(subject), knn_graph=_graph(subject))
    scores, flagged = _spread(issues, "near_duplicate", np.arange(subject.rows), subject.rows)
    scores[subject.norms == 0] = np.nan
    median = info["median_distance_to_nearest_neighbor"]
    cases = _near_cases(
        subject, flagged, "review: the same effect as another row (cleanlab)", lambda near: near.alike[:, :SHOWN]
    )
    return Finding(
        "cleanlab_near_duplicate",
        scores,
        cases,
        "One minus cleanlab's score of the distance to the nearest row; 1 is a gradient of the same direction.",
        f"Flagged where that distance, or another row's to this one, is below {settings.threshold * median:.3g}: "
        f"{settings.threshold:.3g} times the median of all (cleanlab {_version()}).",
    )


def _probabilities(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Return every row's probabilities, float32 [rows, classes], and class number, int64 [rows]."""
    from influence.capture.probabilities import class_probabilities
    from influence.stages.record import overridden

    config = overridden(subject.run.config, subject.overrides)
    blocks = class_probabilities(config, subject.run.store, subject.folder, subject.progress)
    pieces = [(found, classes) for _, found, classes in blocks]
    return np.concatenate([found for found, _ in pieces]), np.concatenate([classes for _, classes in pieces])


def _datalab(issue: str, chosen: dict[str, Any], labels: np.ndarray, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Return what Datalab finds of one issue: its table, and what it tells of it."""
    try:
        from cleanlab import Datalab
    except ImportError as error:
        raise MissingExtra(f"{MISSING} ({error})") from None
    lab = Datalab(data={"label": labels.tolist()}, label_name="label", verbosity=0)
    lab.find_issues(issue_types={issue: chosen}, **given)
    found: Any = lab.get_issues()
    # Datalab prints what goes wrong inside a check, and goes on without it.
    if f"is_{issue}_issue" not in found:
        raise InfluenceError(f"cleanlab {_version()} could not make its check {issue!r} on these rows.")
    return found, lab.get_info(issue)


def _spread(issues: Any, issue: str, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores in our direction, float32 [count], NaN of rows that weren't looked at; and the flagged rows."""
    scores = np.full(count, np.nan, dtype=np.float32)
    scores[rows] = 1 - issues[f"{issue}_score"].to_numpy()
    return scores, rows[issues[f"is_{issue}_issue"].to_numpy()]


def _near_cases(
    subject: Subject, rows: np.ndarray, suggestion: str, shown: Callable[[Near], np.ndarray]
) -> dict[int, Case]:
    cases: dict[int, Case] = {}
    rows = rows[subject.norms[rows] > 0]
    for first in range(0, len(rows), BLOCK):
        part = rows[first : first + BLOCK]
        near = shown(subject.graph.of(part))
        wanted = np.unique(near[near >= 0])
        names = dict(zip(wanted.tolist(), subject.ids(wanted), strict=True))
        for row, line in zip(part.tolist(), near.tolist(), strict=True):
            cases[row] = Case(tuple(names[other] for other in line if other >= 0), "review", suggestion)
    return cases


def _names(subject: Subject, classes: np.ndarray) -> dict[int, str]:
    """Return the label that rows of each class have, by class number."""
    codes = subject.labels.codes
    first = {int(number): int(np.flatnonzero((classes == number) & (codes >= 0))[0]) for number in np.unique(classes)}
    return {number: str(subject.labels.name(row)) for number, row in first.items()}


def _graph(subject: Subject) -> Any:
    return knn_matrix(subject.graph)


def _nearest(subject: Subject) -> int:
    return min(NEAREST, subject.graph.k)


def _numbered(subject: Subject) -> np.ndarray:
    """Return labels for a Datalab that looks at none."""
    return np.arange(subject.rows) % 2


def _version() -> str:
    from cleanlab.version import __version__

    return __version__


__all__ = [
    "CloseSettings", "FarSettings", "LabelSettings", "check_label", "check_near_duplicate", "check_outlier",
    "lacks_labels", "lacks_rows",
]  # fmt: skip
