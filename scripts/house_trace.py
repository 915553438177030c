"""What runs while one shard is captured and while one query is answered, on a tiny random model in this process.

    python scripts/house_trace.py        # prints JSON

A row's way is the last shard's task, when the session is open: from the task's function to the commit. A query's way is
the whole command, from its arguments to the table. Functions of `influence/` and `index/` alone are counted, and frames
between two of them are not. The processor time is that of a fresh process.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from snapshot import command_line
from snapshot_material import QUERIES, write_material, write_run_file

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / name) + os.sep for name in ("influence", "index"))
ROW_TASKS = ("run_shard", "run")
"""Functions of the capture stage that make one shard."""
ROW_FILE = "influence/capture/rows.py"


class Trace:
    """Record which of our functions run, and how many of our frames are open at most.

    Args:
        starts: Whether a function begins what is recorded; each beginning forgets what was recorded before.
    """

    def __init__(self, starts: Callable[[CodeType], bool]) -> None:
        self.codes: set[CodeType] = set()
        self.deepest = 0
        self._starts = starts
        self._open = threading.local()

    def __enter__(self) -> "Trace":
        threading.setprofile(self._event)
        sys.setprofile(self._event)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    @property
    def functions(self) -> int:
        """How many functions ran; a module's own code is none."""
        return len({code for code in self.codes if code.co_name != "<module>"})

    @property
    def files(self) -> int:
        """How many files they are in."""
        return len({code.co_filename for code in self.codes if code.co_name != "<module>"})

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return") or not frame.f_code.co_filename.startswith(OURS):
            return
        frames: list[FrameType] = self._open.__dict__.setdefault("frames", [])
        if event == "return":
            while frames and frames.pop() is not frame:
                pass
        elif frames or self._starts(frame.f_code):
            if not frames:
                self.codes, self.deepest = set(), 0
            frames.append(frame)
            self.codes.add(frame.f_code)
            self.deepest = max(self.deepest, len(frames))


def main() -> None:
    """Build a tiny run and query it under the trace; print the figures."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE"):
        os.environ[name] = "1"
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder))))


def measure(folder: Path) -> dict[str, float]:
    """Return the figures by name."""
    os.environ |= {"XDG_DATA_HOME": str(folder / "data-home"), "HF_DATASETS_CACHE": str(folder / "cache")}
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.path.insert(0, str(ROOT))
    work = folder / "work"
    work.mkdir()
    write_material(work)
    call = command_line(ROOT)
    run, query = work / "run", QUERIES["texts"][0]
    with Trace(lambda code: code.co_name in ROW_TASKS and code.co_filename.endswith(ROW_FILE)) as row:
        call("build", "-c", write_run_file(work, "run", recipe="whitened"), "--out", run, "--workers", 0)
    if not row.codes:
        raise SystemExit(f"{ROW_FILE} has none of {', '.join(ROW_TASKS)}: name the function in scripts/house_trace.py.")
    words = ("query", run, "--prompt", query["prompt"], "--completion", query["completion"])
    seconds = [_child_seconds(*arguments) for arguments in (("--help",), (*words, "--no-exact"), (*words, "--exact"))]
    with Trace(lambda code: code.co_name != "<module>") as answer:
        call(*words)
    return {
        "row_functions": row.functions,
        "row_frames": row.deepest,
        "query_files": answer.files,
        "query_functions": answer.functions,
        "help_seconds": seconds[0],
        "index_seconds": seconds[1],
        "exact_seconds": seconds[2],
    }


def _child_seconds(*argv: Any) -> float:
    """Return the processor seconds of a verb in a process of its own."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    program = [sys.executable, "-c", "from influence.cli.main import main; main()", *map(str, argv)]
    subprocess.run(program, check=True, capture_output=True)
    return used() - before


if __name__ == "__main__":
    main()
