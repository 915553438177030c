"""The capture stage: each task turns one range of rows into one committed shard.

A task owns its whole shard. What stands already is left alone, so the same build run again does only what is missing.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from distributed import Client

from influence.data.example import Example, place_of
from influence.data.tokenise import Part
from influence.errors import CaptureError, InfluenceError
from influence.pipeline.progress import Stage
from influence.pipeline.quarantine import without_failing_rows
from influence.pipeline.session import Session
from influence.pipeline.spec import CaptureSpec
from influence.pipeline.submit import run_tasks
from influence.pipeline.transfer import Piece
from influence.pipeline.worker import session_here
from influence.recipe import Baseline
from influence.remote.access import each, listed
from influence.store.codec import Codec, CodecSettings, Encoded
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, Quarantined, ShardRange
from influence.store.manifest import Part as FingerprintPart
from influence.store.shard import ROWS, RowMeta, ShardRecord
from influence.store.writer import committed, write_shard
from influence.vectors.unit_norm import unit_norm

log = logging.getLogger(__name__)

BLOCK_ROWS = 1024
"""Rows of several checkpoints that are encoded at once."""


@dataclass(frozen=True)
class ShardTask:
    """What a worker is sent: one shard to capture."""

    spec: CaptureSpec
    run_dir: Path
    span: ShardRange
    fingerprint: str
    fingerprint_parts: dict[str, FingerprintPart]
    codec: CodecSettings = CodecSettings()

    @property
    def name(self) -> str:
        """The shard and its rows, for messages."""
        return f"{self.span.name} (rows {self.span.start} to {self.span.stop - 1})"


@dataclass(frozen=True)
class ShardDone:
    """What a worker answers; the rows are on disk."""

    shard: int
    rows: int
    tokens: int
    zero_rows: tuple[int, ...]
    quarantined: tuple[Quarantined, ...]


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


def missing(run_dir: Path, manifest: Manifest) -> tuple[list[ShardRange], list[int]]:
    """Return the shards that are still to be captured, and the zero rows of those that stand, ascending.

    A shard with quarantined rows is captured again: the same build gives them another try.
    """
    todo, zeros, present = [], [], listed(run_dir / ROWS)

    def standing(span: ShardRange) -> ShardRecord | None:
        return committed(run_dir, span, manifest.fingerprint, manifest.fingerprint_parts, present)

    for span, record in zip(manifest.shards, each(standing, manifest.shards, run_dir), strict=True):
        if record is None or record.quarantined:
            todo.append(span)
        else:
            zeros += record.zero_rows
    return todo, zeros


def capture_missing(
    client: Client, spec: CaptureSpec, run_dir: Path, manifest: Manifest, todo: Iterable[ShardRange], stage: Stage
) -> tuple[list[int], list[Quarantined]]:
    """Capture shards on the cluster and return their zero rows and their quarantined rows.

    Args:
        client: Of the cluster, whose workers have the session plugin.
        spec: With dtype and device decided.
        run_dir: The run, in reach of every worker.
        manifest: Of the run.
        todo: The shards to capture.
        stage: Hears of every shard.

    Raises:
        InfluenceError: As a worker raised it; the message names the shard and, where one is to blame, the row.
        CaptureError: More rows than `data.quarantine` failed.
    """
    codec = CodecSettings(codec=manifest.codec, rank=manifest.rank)
    tasks = (ShardTask(spec, run_dir, span, manifest.fingerprint, manifest.fingerprint_parts, codec) for span in todo)
    zeros: list[int] = []
    quarantined: list[Quarantined] = []
    for done in run_tasks(client, run_shard, tasks, lambda task: task.name):
        zeros += done.zero_rows
        quarantined += done.quarantined
        stage.finished(rows=done.rows, tokens=done.tokens)
        for row in done.quarantined:
            log.warning("Row %d (%s) is set aside: %s", row.row, row.id, row.error)
        if len(quarantined) > spec.data.quarantine:
            raise CaptureError(
                f"{len(quarantined)} rows failed, more than data.quarantine allows ({spec.data.quarantine}); the last "
                f"is row {quarantined[-1].row}: {quarantined[-1].error}"
            )
    return zeros, quarantined


def run_shard(task: ShardTask) -> ShardDone:
    """Capture one shard in a worker's session; the entry point of a task."""
    with session_here(task.spec) as session:
        return capture_shard(session, task)


def capture_shard(session: Session, task: ShardTask) -> ShardDone:
    """Read, tokenise, capture and write one shard.

    Memory: the shard's encoded rows, its texts and tokens, and one batch.

    Raises:
        InfluenceError: Of the kind that went wrong, with the shard in front of the message.
    """
    span = task.span
    try:
        codec = codec_for(task.codec, session.modules)
        examples = list(session.rows.examples(span.start, span.stop))
        parts = session.tokenise(examples)
        with session.computing:
            captured, failed = capture_most(session, codec, examples, parts)
        quarantined = [Quarantined(row=span.start + n, id=examples[n].id, error=failed[n]) for n in sorted(failed)]
        record = write_shard(
            task.run_dir,
            span,
            codec,
            captured.encoded,
            captured.norms,
            _metadata(session, examples, parts, captured),
            task.fingerprint,
            task.fingerprint_parts,
            quarantined,
        )
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    except Exception as error:
        error.add_note(f"This happened in {task.name}.")
        raise
    tokens = sum(len(part.input_ids) for part in parts)
    return ShardDone(span.shard, span.rows, tokens, record.zero_rows, record.quarantined)


def capture_most(
    session: Session, codec: Codec, examples: Sequence[Example], parts: Sequence[Part]
) -> tuple[Captured, dict[int, str]]:
    """Capture every row that can be; the others stay zero, and their positions are returned with their errors."""

    def attempt(positions: Sequence[int]) -> Captured:
        wanted = set(positions)
        return capture_rows(session, codec, examples, [part for part in parts if part.position in wanted])

    return without_failing_rows(attempt, range(len(examples)), session.spec.data.quarantine)


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


def report_zero_rows(zeros: Sequence[int], rows: int, baseline: Baseline | None = None) -> None:
    """Log how many rows have nothing to differentiate, or for a baseline to compare, and the first ten."""
    if zeros:
        named = ", ".join(map(str, zeros[:10])) + (", …" if len(zeros) > 10 else "")
        log.warning(
            "%d of %d rows have %s and score 0: rows %s.",
            len(zeros),
            rows,
            {None: "a zero gradient (no scored token, mostly)", "repsim": "no token", "bm25": "no word"}[baseline],
            named,
        )


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


def _metadata(session: Session, examples: Sequence[Example], parts: Sequence[Part], captured: Captured) -> RowMeta:
    tokens = np.zeros(len(examples), dtype=np.int64)
    for part in parts:
        tokens[part.position] += part.scored
    return RowMeta(
        id=[example.id for example in examples],
        source=[example.source for example in examples],
        uri=[example.uri for example in examples],
        label=[example.label for example in examples],
        tokens=tokens,
        loss=captured.losses,
        text=session.texts(examples),
        weight=captured.weights,
    )
