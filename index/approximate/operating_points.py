"""What a search of an approximate index is set to, as measured on the data itself: cells read, candidates proposed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from index.errors import VectorIndexError

End = Literal["largest", "smallest"]


class Dial(BaseModel):
    """How one end of the ranking is searched, to a depth.

    Attributes:
        end: Of the ranking. The opposing end is mostly harder: rows gather in directions, seldom in opposite ones.
        depth: The k it was measured for.
        probes: Cells read.
        candidates: Rows proposed; the stored rows decide among them.
        recall: Share of the true best `depth` rows among the candidates, on the measured questions of the kind that
            finds least.
        margin: Deviations of its rows that the nearest unread cell stays below the last score found; a search that
            finds one nearer reads more cells. None where every cell is read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    end: End
    depth: int
    probes: int
    candidates: int
    recall: float
    margin: float | None = None


class CurvePoint(BaseModel):
    """One measured point: as `Dial`, and which share of all rows' codes the cells held."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    end: End
    depth: int
    probes: int
    rows_read: float
    candidates: int
    recall: float


class Measured(BaseModel):
    """What measuring found.

    Attributes:
        target: The recall that was wanted.
        reached: Whether every dial reaches it.
        queries: How many questions were asked; see `questions`.
        spread: Of `Cells.order`.
        dials: Chosen, one an end and depth.
        curve: Everything that was measured on the way.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: float
    reached: bool
    queries: int
    spread: float
    dials: tuple[Dial, ...]
    curve: tuple[CurvePoint, ...]


def dial_for(measured: Measured, end: End, k: int) -> Dial:
    """Return the dial of the least depth that reaches k, or the deepest."""
    dials = sorted((dial for dial in measured.dials if dial.end == end), key=lambda dial: dial.depth)
    return next((dial for dial in dials if dial.depth >= k), dials[-1])


def dialled(
    measured: Measured | None, end: End, k: int, cells: int, probes: int | None, candidates: int | None
) -> tuple[int, int, float]:
    """Return cells to read, rows to propose, and the spread for k neighbours.

    The dial of the least depth that reaches k counts; beyond the deepest, cells and candidates grow with k.

    Args:
        measured: Of the index; None if it hasn't been measured.
        end: Of the ranking.
        k: Neighbours wanted.
        cells: Of the index; no more are read.
        probes: What the user set, if anything.
        candidates: What the user set, if anything; k at least.

    Raises:
        VectorIndexError: Nothing was measured, and the user didn't set both; or fewer candidates than k were set.
    """
    if candidates is not None and candidates < k:
        raise VectorIndexError(
            f"index.candidates is {candidates} and k is {k}: the answer is chosen among the candidates. "
            f"Set {k} or more, or leave it out."
        )
    if measured is None:
        if probes is None or candidates is None:
            raise VectorIndexError(
                "The recall of this index was not measured, so the number of cells to read is unknown. Run "
                "the same build "
                "again, which measures it, or set both index.probes and index.candidates."
            )
        return min(cells, probes), candidates, 1.0
    dial = dial_for(measured, end, k)
    times = max(1.0, k / dial.depth)
    return (
        min(cells, probes if probes is not None else round(dial.probes * times)),
        candidates if candidates is not None else max(k, round(dial.candidates * times)),
        measured.spread,
    )
