"""What a build says of itself while it runs: a small file beside its lock, for whoever watches from elsewhere."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index.strict_json import parse_json
from influence.artifacts.lock import lock_holder
from influence.artifacts.place import is_remote
from influence.artifacts.regular import read_regular
from influence.engine.progress import Report, Step
from influence.errors import StoreError

NOTE = ".progress.json"
INTERVAL = 1.0
"""Seconds between two notes of one stage."""
REMOTE_INTERVAL = 5.0
"""The same in a bucket, where a note costs a request."""

log = logging.getLogger(__name__)


class Note:
    """A report that also keeps the note; a build's steps go through it. A context manager that removes it."""

    def __init__(self, run_dir: Path, report: Report | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up.

        Args:
            run_dir: The run that is built.
            report: Hears of every step, too.
            clock: Tells the seconds.
        """
        self._path = run_dir / NOTE
        self._interval = REMOTE_INTERVAL if is_remote(run_dir) else INTERVAL
        self._report = report
        self._clock = clock
        self._stage: str | None = None
        self._stood = 0
        self._written = 0.0

    def __call__(self, step: Step) -> None:
        """Pass a step on, and write it down if the last was a while ago."""
        if self._report is not None:
            self._report(step)
        begins = step.stage != self._stage
        if begins:
            self._stage, self._stood = step.stage, step.done
        if begins or step.done == step.total or self._clock() - self._written >= self._interval:
            self._write(step)

    def close(self) -> None:
        """Remove the note: nothing runs any more."""
        self._path.unlink(missing_ok=True)

    def _write(self, step: Step) -> None:
        done = step.done - self._stood
        left = (step.total - step.done) * step.seconds / done if done and step.seconds > 0 else None
        document = {
            "stage": step.stage,
            "done": step.done,
            "total": step.total,
            "retried": step.retried,
            "workers_lost": step.lost,
            "rows_per_second": step.rows / step.seconds if step.rows and step.seconds > 0 else None,
            "tokens_per_second": step.tokens / step.seconds if step.tokens and step.seconds > 0 else None,
            "seconds_left": left,
        }
        content, partial = json.dumps(document).encode(), self._path.with_name(NOTE + ".partial")
        try:
            if is_remote(self._path):
                self._path.write_bytes(content)
            else:
                # Never flushed to the disk: a note that a crash loses is a note of a build that is no more.
                partial.unlink(missing_ok=True)
                partial.write_bytes(content)
                os.replace(partial, self._path)
        except (OSError, StoreError) as error:
            log.debug("No note of the progress could be written: %s", error)
        self._written = self._clock()


def read_note(run_dir: Path) -> dict[str, Any] | None:
    """Return what the build of a run last said of itself, or None where none is under way.

    Returns:
        stage, its tasks `done` of `total` and `retried`; workers_lost; rows_per_second, tokens_per_second and
        seconds_left, each None where it can't be said yet.
    """
    if lock_holder(run_dir) is None:
        return None
    try:
        return parse_json(read_regular(run_dir / NOTE))
    except (OSError, StoreError, ValueError):
        return None
