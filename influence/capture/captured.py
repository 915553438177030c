"""Rows in memory: what a build stores of each example of a shard, captured in batches, whole and checked.

An example may be cut into parts and may be captured at several checkpoints; its row is put together here. What isn't
finite is refused by name, or set aside (see `quarantine`).
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from influence.capture.session import Session
from influence.capture.transfer import Piece
from influence.data.example import Example, place_of
from influence.data.tokenise import Part
from influence.engine.quarantine import without_failing_rows
from influence.errors import CaptureError
from influence.store.codec import Codec, Encoded
from influence.vectors.unit_norm import unit_norm

BLOCK_ROWS = 1024
"""Rows of several checkpoints that are encoded at once."""


@dataclass(frozen=True)
class Captured:
    """One shard's rows in memory.

    Attributes:
        encoded: Directions as the codec keeps them, n rows; zeros where nothing was scored.
        norms: Lengths, float32 [n].
        losses: Of the scored tokens, float32 [n], in nats; of several checkpoints their mean.
        weights: What rows are multiplied by after the curvature, float32 [n], or None; likewise.
    """

    encoded: Encoded
    norms: np.ndarray
    losses: np.ndarray
    weights: np.ndarray | None


def capture_most(
    session: Session, codec: Codec, examples: Sequence[Example], parts: Sequence[Part], dead: Container[int] = ()
) -> tuple[Captured, dict[int, str]]:
    """Capture every row that can be; the others stay zero, and their positions are returned with their errors.

    Args:
        session: The run's.
        codec: That the rows are kept in.
        examples: The rows.
        parts: Of the rows.
        dead: Positions of rows that are known to end the process: never touched, and not among those returned.
    """

    def attempt(positions: Sequence[int]) -> Captured:
        wanted = set(positions)
        return capture_rows(session, codec, examples, [part for part in parts if part.position in wanted])

    living = [position for position in range(len(examples)) if position not in dead]
    return without_failing_rows(attempt, living, session.spec.data.quarantine)


def capture_rows(session: Session, codec: Codec, examples: Sequence[Example], parts: Sequence[Part]) -> Captured:
    """Capture what every example's row is made of, adding up the parts of those that were split.

    Memory: the rows as they are encoded; of several checkpoints also all of them in float32, since a direction is that
    of all checkpoints' columns together.

    Raises:
        CaptureError: A gradient or a loss isn't finite; the row and its id are named.
    """
    count = len(examples)
    names = [place_of(example) for example in examples]
    encoded, taken = codec.zeros(count), {"float16": torch.float16, "float32": torch.float32}[codec.takes]
    norms, means = np.zeros(count, dtype=np.float32), np.zeros((count, 2))
    used = session.contributing(parts)
    for positions, rows, values in _every_checkpoint(session, used, names):
        directions, lengths = _split(rows, values, positions, names, session.spec.row_is)
        for name, codes in codec.encode(directions.to(taken).numpy()).items():
            encoded[name][positions] = codes
        norms[positions] = lengths.float().numpy()
        means[positions, : values.shape[1]] = values.numpy()
    tokens = np.bincount([part.position for part in used], [part.scored for part in used], count)
    weights = means[:, 1] / np.maximum(tokens, 1) if session.spec.measurement == "log_odds" else None
    return Captured(
        encoded, norms, means[:, 0].astype(np.float32), None if weights is None else weights.astype(np.float32)
    )


def _every_checkpoint(
    session: Session, used: Sequence[Part], names: Sequence[str]
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield positions [m], rows [m, D] over all checkpoints side by side, and values [m, 1 or 2], their mean."""
    expected = np.bincount([part.position for part in used], minlength=len(names))
    held, means = torch.zeros(0), torch.zeros(0)
    for number, files in enumerate(session.spec.checkpoints):
        session.load(number)
        pieces = whole_rows(session.losses(used, names), expected)
        if session.checkpoints == 1:
            for positions, rows, values in pieces:
                yield positions, rows, values.reshape(len(values), -1)
            return
        width = session.dims // session.checkpoints
        for positions, rows, values in pieces:
            if not len(held):
                held = torch.zeros(len(names), session.dims, dtype=rows.dtype)
                means = torch.zeros(len(names), values[0].numel(), dtype=values.dtype)
            held[positions, number * width : (number + 1) * width] = rows
            means[positions] += files.share * values.reshape(len(values), -1)
    for positions in np.array_split(np.flatnonzero(expected), -(-len(held) // BLOCK_ROWS) or 1):
        if len(positions):
            yield positions, held[positions], means[positions]


def whole_rows(
    pieces: Iterable[Piece], expected: np.ndarray
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Put examples together from their parts.

    A batch's whole examples are passed on as they are. The others are held in the rows' own precision until their
    last part has come.

    Args:
        pieces: Captured batches.
        expected: How many parts each position has, [n].

    Yields:
        Positions [m], rows [m, D] and values [m] float64, each position once.
    """
    held: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}
    for piece in pieces:
        positions = np.array([part.position for part in piece.parts])
        values = piece.values.double()
        alone = expected[positions] == 1
        if alone.any():
            yield positions[alone], piece.rows if alone.all() else piece.rows[alone], values[torch.from_numpy(alone)]
        for place in np.flatnonzero(~alone).tolist():
            position = int(positions[place])
            left, row, value = held.pop(position, (int(expected[position]), torch.zeros(()), torch.zeros(())))
            row, value = row + piece.rows[place], value + values[place]
            if left > 1:
                held[position] = (left - 1, row, value)
            else:
                yield np.array([position]), row[None], value[None]


def _split(
    rows: torch.Tensor, values: torch.Tensor, positions: np.ndarray, names: Sequence[str], row_is: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return directions and lengths, naming the examples whose row or value isn't finite."""
    if not bool(torch.isfinite(values).all()):
        raise _not_finite("loss", torch.isfinite(values).all(dim=1), positions, names)
    try:
        return unit_norm(rows)
    except CaptureError:
        finite = torch.isfinite(torch.linalg.vector_norm(rows.double(), dim=1).to(rows.dtype))
        raise _not_finite(row_is, finite, positions, names) from None


def _not_finite(what: str, finite: torch.Tensor, positions: np.ndarray, names: Sequence[str]) -> CaptureError:
    bad = [int(position) for position, good in zip(positions, finite.tolist(), strict=True) if not good]
    shown = ", ".join(names[position] for position in bad[:10]) + (", …" if len(bad) > 10 else "")
    return CaptureError(
        f"The {what} of {shown} is not finite. Look for inf or NaN in the model's outputs on that text; in float16 "
        "activations "
        "overflow where bfloat16 or float32 would not (model.dtype).",
        bad,
    )
