"""The capture stage: each task turns one range of rows into one committed shard.

A task owns its whole shard. What stands already is left alone, so the same build run again does only what is missing.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from influence.artifacts.access import each, listed
from influence.capture.captured import Captured, capture_most
from influence.capture.process_session import session_here
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.data.example import Example
from influence.data.tokenise import Part
from influence.data.truncation import Truncation
from influence.engine.poison import died_of
from influence.engine.progress import Progress
from influence.engine.stage import NO_DEAD, Dead, RowStage, Stage, Task
from influence.errors import CaptureError
from influence.recipes import Baseline
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, Quarantined, ShardRange
from influence.store.manifest import Part as FingerprintPart
from influence.store.shard import ROWS, RowMeta, ShardFiles, ShardRecord
from influence.store.writer import committed, write_shard

log = logging.getLogger(__name__)


NOTHING_CUT = Truncation.of([], 0)


@dataclass(frozen=True)
class ShardDone:
    """What a worker answers; the rows are on disk."""

    rows: int
    tokens: int
    zero_rows: tuple[int, ...]
    quarantined: tuple[Quarantined, ...] = ()
    truncation: Truncation = NOTHING_CUT


class RowShards(Stage):
    """The rows of a run, a shard a task.

    Attributes:
        run_dir: The run, in reach of every worker.
        manifest: Of the run.
        parts: Of the run's fingerprint.
        quarantined: Rows that were set aside now.
    """

    name = "capture"
    local = ("manifest", "quarantined", "records", "_zeros", "_truncation")

    def __init__(self, run_dir: Path, manifest: Manifest) -> None:
        self.run_dir, self.manifest = run_dir, manifest
        self.parts: dict[str, FingerprintPart] = manifest.fingerprint_parts
        self.quarantined: list[Quarantined] = []
        self._zeros: list[int] = []
        self._truncation = NOTHING_CUT

    @cached_property
    def records(self) -> dict[int, ShardRecord]:
        """The commit records of the shards that stood before, by number; see `committed` for errors."""
        present = listed(self.run_dir / ROWS)
        parts = self.manifest.fingerprint_parts

        def standing(span: ShardRange) -> ShardRecord | None:
            return committed(self.run_dir, span, self.key, parts, present)

        records = zip(self.manifest.shards, each(standing, self.manifest.shards, self.run_dir), strict=True)
        return {span.shard: record for span, record in records if record is not None}

    @property
    def key(self) -> str:
        """The run's fingerprint."""
        return self.manifest.fingerprint

    def cut(self) -> list[Task]:
        """Return a task for each shard."""
        tasks = []
        for span in self.manifest.shards:
            name, path = f"{span.name} (rows {span.start} to {span.stop - 1})", ShardFiles(self.run_dir, span).record
            tasks.append(Task(self, span.shard, name, span, path, self.key, range(span.start, span.stop)))
        return tasks

    def done(self, task: Task) -> bool:
        """Whether a shard stood before. One with quarantined rows is captured again: it is given another try."""
        record = self.records.get(task.number)
        return record is not None and not record.quarantined

    def take(self, result: ShardDone, progress: Progress) -> None:
        """Count a shard's rows and note those that are zero or set aside."""
        self._zeros += result.zero_rows
        self.quarantined += result.quarantined
        self._truncation += result.truncation
        progress.finished(rows=result.rows, tokens=result.tokens)

    @property
    def zero_rows(self) -> list[int]:
        """Rows with nothing to compare, ascending, of the shards that stood before and of those made now."""
        stood = (self.records[task.number] for task in self.cut() if self.done(task))
        return sorted([*self._zeros, *(row for record in stood for row in record.zero_rows)])


class RowCapture(RowShards, RowStage):
    """Shards of what the model makes of rows: gradients, or hidden states.

    Attributes:
        spec: With dtype and device decided.
        codec: Of the rows.
    """

    def __init__(self, spec: CaptureSpec, run_dir: Path, manifest: Manifest) -> None:
        super().__init__(run_dir, manifest)
        self.spec = spec
        self.codec = CodecSettings(codec=manifest.codec, rank=manifest.rank)

    def session(self, task: Task) -> AbstractContextManager[Session]:
        """Lend the session of the run."""
        return session_here(self.spec)

    @property
    def room(self) -> int:
        """What `data.quarantine` leaves."""
        return max(0, self.spec.data.quarantine - len(self.quarantined))

    def run(
        self, task: Task, session: Session, dead: Dead = NO_DEAD, tokenised: Callable[[], None] = lambda: None
    ) -> ShardDone:
        """Read, tokenise, capture and write one shard; dead rows are zeros and quarantined, like those that raise.

        Memory: the shard's encoded rows, its texts and tokens, and one batch.
        """
        span: ShardRange = task.span
        codec = codec_for(self.codec, session.modules)
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
        metadata = _metadata(
            examples, [texts.get(n, example.text) for n, example in enumerate(examples)], parts, captured
        )
        record = write_shard(
            *(self.run_dir, span, codec, captured.encoded, captured.norms, metadata), task.key, self.parts, quarantined
        )
        tokens = sum(len(part.input_ids) for part in parts)
        return ShardDone(span.rows, tokens, record.zero_rows, record.quarantined, Truncation.of(parts, span.rows))

    def rehearse(self, task: Task, session: Session, positions: Sequence[int], tokenised: Callable[[], None]) -> None:
        """Capture some rows of a shard."""
        examples = [session.rows.example(task.rows[position]) for position in positions]
        parts = session.tokenise(examples)
        session.texts(examples)
        tokenised()
        with session.computing:
            capture_most(session, codec_for(self.codec, session.modules), examples, parts)

    def take(self, result: ShardDone, progress: Progress) -> None:
        """Count a shard's rows, and end where too many are set aside.

        Raises:
            CaptureError: More rows than `data.quarantine` failed.
        """
        super().take(result, progress)
        for row in result.quarantined:
            log.warning("Row %d (%s) is set aside: %s", row.row, row.id, row.error)
        most = self.spec.data.quarantine
        if len(self.quarantined) > most:
            raise CaptureError(
                f"{len(self.quarantined)} rows failed, more than data.quarantine allows ({most}); the last "
                f"is row {self.quarantined[-1].row}: {self.quarantined[-1].error}"
            )

    def merge(self) -> None:
        """Say what was truncated in what was captured now."""
        if self._truncation.silenced:
            log.warning("Of the rows captured now, %s", self._truncation.remedy(self.spec.data.max_tokens))


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
