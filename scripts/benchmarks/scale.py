"""What a shard costs the coordinator, and what a second worker brings.

    python scripts/benchmarks/scale.py coordinator --tasks 1000 10000 100000
    python scripts/benchmarks/scale.py workers --rows 4000 --repeats 3

`coordinator` hands so many tasks that do nothing, each with what a shard's task holds, to two local workers, as a build
does, and prints milliseconds a task and the coordinator's resident memory before and after: its share of a build
whose shards take a minute each. `workers` builds the same rows with one worker and with two, alternately, each
computing with one thread, and prints the rows/s of the capture and their ratio. The model is a random 6.8M-parameter
GPT-NeoX; the texts are drawn from invented words.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from build import prepare, run_file
from rich.console import Console
from rich.table import Table

from influence.cluster import ClusterSettings
from influence.config import load_config
from influence.engine.cluster import connect
from influence.engine.progress import Step
from influence.engine.submit import run_tasks
from influence.stages.build import build_run

TASK_BYTES = 4096
"""About what a shard's task is when it is sent: the specification of the run and its fingerprint's parts."""
WORDS = 2000


def coordinator(given: argparse.Namespace, console: Console) -> None:
    """Print what tasks that do nothing cost."""
    table = Table("tasks", "ms a task", "coordinator's memory before", "after")
    process = psutil.Process()
    with connect(ClusterSettings(workers=2, device="cpu")) as client:
        list(run_tasks(client, len, _payloads(100), str))
        for count in given.tasks:
            before, start, done = process.memory_info().rss, time.perf_counter(), 0
            for _ in run_tasks(client, len, _payloads(count), str):
                done += 1
            assert done == count
            spent = 1000 * (time.perf_counter() - start) / count
            after = process.memory_info().rss
            table.add_row(f"{count:,}", f"{spent:.2f}", f"{before / 1e6:.0f} MB", f"{after / 1e6:.0f} MB")
            console.print(f"{count:,} tasks: {spent:.2f} ms a task", style="dim")
    console.print(table)


def _payloads(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"{number:0{TASK_BYTES}d}"


def workers(given: argparse.Namespace, console: Console) -> None:
    """Print the rows/s of a capture by one worker and by two."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in _texts(given.rows)), encoding="utf-8")
        model, _ = prepare(data, folder, 256)
        path = run_file(folder, model, data, "float32", 256, 2048)
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(given.repeats):
            for count, found in speeds.items():
                found.append(_rows_per_second(path, folder / f"run-{count}-{repeat}", count))
                console.print(f"{count} worker(s): {found[-1]:.1f} rows/s", style="dim")
    middle = {count: statistics.median(found) for count, found in speeds.items()}
    table = Table("workers", "rows/s, median", "of one")
    for count, speed in middle.items():
        table.add_row(str(count), f"{speed:.1f}", f"{speed / middle[1]:.2f}")
    console.print(table)


def _rows_per_second(path: Path, run_dir: Path, count: int) -> float:
    """Build and return the speed of the capture from its first finished shard to its last, when models are loaded."""
    steps: list[Step] = []
    build_run(load_config(path, [f"cluster.workers={count}", "cluster.device=cpu"]), run_dir, steps.append)
    captured = [step for step in steps if step.stage == "capture" and step.rows]
    return (captured[-1].rows - captured[0].rows) / (captured[-1].seconds - captured[0].seconds)


def _texts(rows: int) -> Iterator[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioubdgklmnprstv", k=draw.randint(2, 9))) for _ in range(WORDS)]
    for _ in range(rows):
        yield " ".join(draw.choices(words, k=draw.randint(10, 120)))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured = parser.add_subparsers(dest="measured", required=True)
    first = measured.add_parser("coordinator")
    first.add_argument("--tasks", type=int, nargs="+", default=[1000, 10_000])
    second = measured.add_parser("workers")
    second.add_argument("--rows", type=int, default=4000)
    second.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    {"coordinator": coordinator, "workers": workers}[given.measured](given, Console())


if __name__ == "__main__":
    main()
