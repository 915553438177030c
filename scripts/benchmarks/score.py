"""A full scan of many rows for many queries: its time beside that of the bare matrix product, and its memory.

    python scripts/benchmarks/score.py --rows 1000000 --queries 50000 --folder /big/disk

Rows and queries are made up like gradients (see `issues_scale.py`), 256 columns unless said. Queries are put where the
scan's first tasks would have left them; the rest is what `influence score` does, workers included, and what it writes.
The floor is the time that all cores take for as many multiplications and additions, in one float32 product, measured
before and after. Peak memory is the anonymous memory of all processes together (needs Linux).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from issues_scale import PeakMemory, make_run
from search import drawn

from influence.artifacts.tensors import save_tensors
from influence.capture.opening import run_spec
from influence.config import load_config
from influence.data.example import Example
from influence.scan.answer import Question, answer, planned
from influence.scan.plan import Scan
from influence.store.reader import Store


def main() -> None:
    """Make a run, scan it, and print a line for each way of keeping scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--dims", type=int, default=256, help="columns, a multiple of 256")
    parser.add_argument("--codec", default="float16")
    parser.add_argument("--keep", nargs="+", default=["top", "rows"], help="as of `influence score`")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="a folder with room for the run; a temporary one in it is used")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(Path(folder), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    """Make a run, scan it, and print."""
    run = folder / "run"
    make_run(run, given.rows, given.dims, given.codec)
    config, store = (
        load_config(run / "config.yaml", [f"cluster.workers={given.workers}", "cluster.device=cpu"]),
        Store(run),
    )
    queries = tuple(Example.query("", f"query {number}", id=f"query-{number}") for number in range(given.queries))
    operations = 2 * given.rows * given.queries * given.dims
    print(f"{given.rows:,} rows of {given.dims:,} columns × {given.queries:,} queries, {given.workers} workers\n")
    print(
        "| kept | seconds | of a bare product | peak memory | bytes of the answer |\n|---|---|---|---|---|", flush=True
    )
    for keep in given.keep:
        out, question = folder / f"{keep}.parquet", Question(queries, keep)
        scan, _ = planned(config, store, question, out, store.rows)
        put_queries(scan, given.dims)
        before, start, watch = product_rate(), time.perf_counter(), PeakMemory(os.getpid())
        answer(config, store, run_spec(config, run, store.manifest), question, out)
        seconds, peak = time.perf_counter() - start, watch.stop()
        floor = operations / max(before, product_rate())
        print(
            f"| {keep} | {seconds:,.0f} | {seconds / floor:.2f} times {floor:,.0f} s | {peak / 2**20:,.0f} MiB | "
            f"{out.stat().st_size:,} |",
            flush=True,
        )


def put_queries(scan: Scan, dims: int) -> None:
    """Leave the batches of queries as the tasks that capture them do."""
    scan.folder.mkdir()
    for number in range(len(scan.batches)):
        count = scan.batch_size(number)
        vectors = torch.from_numpy(drawn(count, dims, 0.8, 10**9 + number))
        said, instead = torch.zeros(count, dtype=torch.float64), torch.full((count,), np.nan, dtype=torch.float64)
        found = {"vectors": vectors, "said": said, "instead": instead}
        save_tensors(scan.asked_file(number), found, scan.fingerprint)


def product_rate(side: int = 4096) -> float:
    """Return how many multiplications and additions all cores together do in a second."""
    left, right = torch.rand((2, side, side))
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(left, right)
        taken.append(time.perf_counter() - start)
    return 2 * side**3 / min(taken)


if __name__ == "__main__":
    main()
