"""The capture stage: each task turns one range of rows into one committed shard.

A task owns its whole shard. What stands already is left alone, so the same build run again does only what is missing.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from distributed import Client

from influence.artifacts.access import each, listed
from influence.capture.captured import Captured, capture_most
from influence.capture.process_session import session_here
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.data.example import Example
from influence.data.tokenise import Part
from influence.data.truncation import Truncation
from influence.engine.poison import Dead, died_of, run_surviving
from influence.engine.progress import Progress
from influence.errors import CaptureError, InfluenceError
from influence.recipes import Baseline
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, Quarantined, ShardRange
from influence.store.manifest import Part as FingerprintPart
from influence.store.shard import ROWS, RowMeta, ShardRecord
from influence.store.writer import committed, write_shard

log = logging.getLogger(__name__)

NO_DEAD: Dead = {}


@dataclass(frozen=True)
class ShardTask:
    """What a worker is sent: one shard to capture."""

    spec: CaptureSpec
    run_dir: Path
    span: ShardRange
    fingerprint: str
    fingerprint_parts: dict[str, FingerprintPart]
    codec: CodecSettings = CodecSettings()

    def session(self) -> AbstractContextManager[Session]:
        """Lend the session that it needs, in the process that does it."""
        return session_here(self.spec)

    @property
    def name(self) -> str:
        """The shard and its rows, for messages."""
        return f"{self.span.name} (rows {self.span.start} to {self.span.stop - 1})"

    @property
    def numbers(self) -> Sequence[int]:
        """The row at each position."""
        return range(self.span.start, self.span.stop)


@dataclass(frozen=True)
class ShardDone:
    """What a worker answers; the rows are on disk."""

    shard: int
    rows: int
    tokens: int
    zero_rows: tuple[int, ...]
    quarantined: tuple[Quarantined, ...]
    truncation: Truncation


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
    client: Client, spec: CaptureSpec, run_dir: Path, manifest: Manifest, todo: Iterable[ShardRange], stage: Progress
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
        ClusterError: Worker after worker was lost on a shard, and no few rows of it are to blame.
    """
    codec = CodecSettings(codec=manifest.codec, rank=manifest.rank)
    tasks = (ShardTask(spec, run_dir, span, manifest.fingerprint, manifest.fingerprint_parts, codec) for span in todo)
    zeros: list[int] = []
    quarantined: list[Quarantined] = []
    truncation = Truncation.of([], 0)
    room = lambda: max(0, spec.data.quarantine - len(quarantined))  # noqa: E731
    for done in run_surviving(client, run_shard, try_shard, tasks, room, stage):
        zeros += done.zero_rows
        quarantined += done.quarantined
        truncation += done.truncation
        stage.finished(rows=done.rows, tokens=done.tokens)
        for row in done.quarantined:
            log.warning("Row %d (%s) is set aside: %s", row.row, row.id, row.error)
        if len(quarantined) > spec.data.quarantine:
            raise CaptureError(
                f"{len(quarantined)} rows failed, more than data.quarantine allows ({spec.data.quarantine}); the last "
                f"is row {quarantined[-1].row}: {quarantined[-1].error}"
            )
    if truncation.silenced:
        log.warning("Of the rows captured now, %s", truncation.remedy(spec.data.max_tokens))
    return zeros, quarantined


def run_shard(task: ShardTask) -> ShardDone:
    """Capture one shard in a worker's session; the entry point of a task."""
    with task.session() as session:
        return capture_shard(session, task)


def try_shard(
    session: Session, task: ShardTask, positions: Sequence[int], dead: Dead, tokenised: Callable[[], None]
) -> ShardDone | None:
    """Capture one shard without its dead rows; where that isn't what is left, try some rows and keep nothing."""
    if len(positions) + len(dead) == task.span.rows:
        return capture_shard(session, task, dead, tokenised)
    with _named(task):
        examples = [session.rows.example(task.numbers[position]) for position in positions]
        parts = session.tokenise(examples)
        session.texts(examples)
        tokenised()
        with session.computing:
            capture_most(session, codec_for(task.codec, session.modules), examples, parts)
    return None


def capture_shard(
    session: Session,
    task: ShardTask,
    dead: Dead = NO_DEAD,
    tokenised: Callable[[], None] = lambda: None,
) -> ShardDone:
    """Read, tokenise, capture and write one shard.

    Memory: the shard's encoded rows, its texts and tokens, and one batch.

    Args:
        session: The run's.
        task: The shard.
        dead: Rows that kill their worker: zeros, like those that raise an error, and quarantined with them.
        tokenised: Called between the tokeniser and the model.

    Raises:
        InfluenceError: Of the kind that went wrong, with the shard in front of the message.
    """
    span = task.span
    with _named(task):
        codec = codec_for(task.codec, session.modules)
        examples = list(session.rows.examples(span.start, span.stop))
        readable = [position for position in range(span.rows) if dead.get(position) != "tokenising"]
        parts = [
            replace(part, position=readable[part.position])
            for part in session.tokenise([examples[position] for position in readable])
        ]
        texts = dict(zip(readable, session.texts([examples[position] for position in readable]), strict=True))
        tokenised()
        with session.computing:
            captured, failed = capture_most(session, codec, examples, parts, dead)
        failed |= {position: died_of(during) for position, during in dead.items()}
        quarantined = [Quarantined(row=span.start + n, id=examples[n].id, error=failed[n]) for n in sorted(failed)]
        record = write_shard(
            task.run_dir,
            span,
            codec,
            captured.encoded,
            captured.norms,
            _metadata(examples, [texts.get(n, example.text) for n, example in enumerate(examples)], parts, captured),
            task.fingerprint,
            task.fingerprint_parts,
            quarantined,
        )
    tokens = sum(len(part.input_ids) for part in parts)
    truncation = Truncation.of(parts, span.rows)
    return ShardDone(span.shard, span.rows, tokens, record.zero_rows, record.quarantined, truncation)


@contextmanager
def _named(task: ShardTask) -> Iterator[None]:
    """Put the shard in front of what goes wrong in it."""
    try:
        yield
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    except Exception as error:
        error.add_note(f"This happened in {task.name}.")
        raise


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


def _metadata(examples: Sequence[Example], texts: list[str], parts: Sequence[Part], captured: Captured) -> RowMeta:
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
        text=texts,
        weight=captured.weights,
    )
