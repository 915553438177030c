"""The steps of `auto`: what is tried next where the index that was built finds too little.

How many bytes a row needs depends on the rows: clustered ones are told apart by a hundred, nearly white ones by
thousands. So `auto` builds the least of its plans, measures, and climbs while that falls short of the recall that is
wanted:

    1  a bit a coordinate (rows of at most 4,096 columns: two bits on fewer), with up to 1,000 candidates a neighbour
    2  twice the bytes, two bits a coordinate
    3  four times the bytes, four bits a coordinate
    4  no index: every search scans the stored rows

Steps that don't fit into the memory that was given, or take hardly more than the one before, are left out. What was
tried stands in `climb.json` while an index is made, so that a build that was killed goes on where it was, and then in
`index.json`. A kind that the user named has one step.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from index.approximate.operating_points import End, Measured
from index.commit import FORMAT_VERSION, clear_partials, free_bytes, parse_record, read_fields, write_record
from index.errors import IndexNotWritten, VectorIndexError
from index.factory import STEPS, IndexPlan, plan_factory
from index.persist import RECORD
from index.settings import IndexSettings

log = logging.getLogger(__name__)

CLIMB = "climb.json"

MORE = 1.25
"""How many times the bytes of the step before a step takes at least."""


class Tried(BaseModel):
    """A step that fell short.

    Attributes:
        step: Its place among the plans.
        plan: In words.
        row_bytes: Of one row.
        end: Of the ranking where it found least.
        depth: The k there.
        candidates: The most that were proposed.
        recall: Share of the true rows among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    plan: str
    row_bytes: int
    end: End
    depth: int
    candidates: int
    recall: float

    @classmethod
    def of(cls, step: int, plan: IndexPlan, measured: Measured) -> "Tried":
        """Return what fell short where it was worst."""
        worst = min(measured.dials, key=lambda dial: dial.recall)
        return cls(
            step=step,
            plan=plan.summary,
            row_bytes=plan.row_bytes,
            end=worst.end,
            depth=worst.depth,
            candidates=worst.candidates,
            recall=worst.recall,
        )


class Climb(BaseModel):
    """What `climb.json` holds, and `index.json` of rows that are scanned because no step was enough.

    Attributes:
        format_version: Of the file.
        kind: `exact` in `index.json`.
        fingerprint: Of the rows, as the caller names them.
        target: The recall that was wanted.
        plans: All steps.
        tried: Those that fell short.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    kind: Literal["climb", "exact"]
    fingerprint: str
    target: float
    plans: tuple[IndexPlan, ...]
    tried: tuple[Tried, ...]

    @property
    def next(self) -> int:
        """The step to be tried next."""
        return max((step.step for step in self.tried), default=-1) + 1


def ladder(settings: IndexSettings, rows: int, dims: int) -> tuple[IndexPlan, ...]:
    """Return the plans in the order in which they are tried: one of them unless the kind is `auto`.

    Raises:
        VectorIndexError: See `plan_factory`; of the first plan.
    """
    plans = [plan_factory(settings, rows, dims)]
    if settings.kind != "auto" or plans[0].factory is None:
        return tuple(plans)
    for step in range(1, len(STEPS)):
        try:
            further = plan_factory(settings, rows, dims, step)
        except VectorIndexError:
            continue
        if further.row_bytes >= MORE * plans[-1].row_bytes:
            plans.append(further)
    return (*plans, plan_factory(IndexSettings(kind="exact"), rows, dims))


def read_climb(directory: Path, fingerprint: str, plans: Sequence[IndexPlan], target: float) -> Climb:
    """Return what was tried of these plans for this recall; nothing where the file says nothing of them."""
    fresh = Climb(kind="climb", fingerprint=fingerprint, target=target, plans=tuple(plans), tried=())
    path = directory / CLIMB
    try:
        record = parse_record(path, read_fields(path), Climb)
    except VectorIndexError:
        return fresh
    same = (record.fingerprint, record.target, record.plans) == (fingerprint, target, fresh.plans)
    return record if same else fresh


def fell_short(directory: Path, climb: Climb, step: int, measured: Measured) -> Climb:
    """Write down that a step wasn't enough, and say which comes next.

    Raises:
        IndexNotWritten: The disk is full or can't be written.
    """
    attempt = Tried.of(step, climb.plans[step], measured)
    attempts = (*(earlier for earlier in climb.tried if earlier.step < step), attempt)
    climbed = climb.model_copy(update={"tried": attempts})
    _write(directory / CLIMB, climbed)
    log.info(
        "Index: %s finds %.3f of the %d %s scores with %d candidates; the target is %.3f. Next: %s.",
        attempt.plan,
        attempt.recall,
        attempt.depth,
        attempt.end,
        attempt.candidates,
        climb.target,
        climb.plans[step + 1].summary,
    )
    return climbed


def record_scan(directory: Path, climb: Climb) -> None:
    """Commit that searches scan the rows, because no index was enough.

    Raises:
        IndexNotWritten: The disk is full or can't be written.
    """
    _write(directory / RECORD, climb.model_copy(update={"kind": "exact"}))
    best = max(climb.tried, key=lambda attempt: attempt.recall)
    log.warning(
        "No index in the fallback chain reaches a recall of %.3f; the best, %s, has %.3f. Searches scan the "
        "stored rows, which is exact and slower. Raise index.memory, lower index.recall, or name an index.kind.",
        climb.target,
        best.plan,
        best.recall,
    )


def read_scan(directory: Path) -> Climb | None:
    """Return the record of rows that are scanned because no index was enough; None where there is another or none.

    Raises:
        IndexCorrupt: There is a record, but it can't be read.
        IndexMismatch: It is of another version of the format.
    """
    path = directory / RECORD
    if not path.exists():
        return None
    fields = read_fields(path)
    return parse_record(path, fields, Climb) if fields.get("kind") == "exact" else None


def end_climb(directory: Path) -> None:
    """Remove what was kept while the index was made."""
    (directory / CLIMB).unlink(missing_ok=True)
    clear_partials(directory)


def _write(path: Path, record: Climb) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, record)
    except OSError as error:
        raise IndexNotWritten(
            f"{path} couldn't be written ({error}); {free_bytes(path.parent)}. Make room, then run the same command."
        ) from None
