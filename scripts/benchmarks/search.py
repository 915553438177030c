"""Measure approximate search beside exact search, as ratios of one run.

    python scripts/benchmarks/search.py --rows 1000000 --dims 1024 --folder /big/disk
    python scripts/benchmarks/search.py --rows 10000000 --dims 256 --folder /big/disk
    python scripts/benchmarks/search.py --run demo/run --kind ivf_rabitq --queries 64

Rows are made up like gradients: directions in clusters of very different sizes with a falling spectrum, lengths
log-normal (σ = 0.8; `--sigma 0` makes unit rows). They lie on disk in float16; exact search reads them from there,
and so does the rescoring of what the index proposes. Questions are fresh draws, not rows, and none that the index was
measured with. With `--run` the rows are those of a run, as its recipe compares them; some of them, drawn at random, are
left out and asked as questions. Both searches answer for both ends of the ranking, ten rows each. Beside our exact
search, which sums in float64 so that copies of a row tie, stands one float32 matrix product a block, which doesn't.
Peak memory is that of the process without mapped files, and needs Linux.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index.approximate.merge import merge_parts, open_index, record_measured
from index.approximate.operating_points import Measured
from index.approximate.parts import build_part, part_ranges, save_trained
from index.approximate.questions import questions
from index.approximate.recall import measure_recall, truth_depth
from index.approximate.search import ApproximateIndex, search
from index.approximate.train import sample_rows, train
from index.exact import exact_search, exact_search_scores
from index.factory import IndexPlan, plan_factory
from index.neighbours import Neighbours
from index.rerank import scored_by
from index.settings import IndexSettings
from influence.config import load_config
from influence.stages.index import compared_blocks, load_comparison
from influence.store.manifest import Manifest
from influence.store.reader import Store

K = 10
BLOCK = 10_000
CLUSTERS = 2000


def main() -> None:
    """Make rows up, build, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=1024)
    parser.add_argument("--kind", default="ivf_rabitq2")
    parser.add_argument("--factory")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--sigma", type=float, default=0.8)
    parser.add_argument("--queries", type=int, default=128, help="asked together, and half of them one by one")
    parser.add_argument(
        "--run", type=Path, help="take the rows from this run, and leave --rows, --dims and --sigma out"
    )
    parser.add_argument("--folder", type=Path, help="a folder with room for the rows; a temporary one in it is used")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(Path(folder), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    """Build and search, and print."""
    rows, questions = real_rows(folder, given) if given.run else made_rows(folder, given)
    given.rows, given.dims = rows.shape
    settings = IndexSettings(
        kind="factory" if given.factory else given.kind,
        factory=given.factory,
        memory=given.memory,
        recall=given.recall,
    )
    plan = plan_factory(settings, given.rows, given.dims)

    watch = PeakMemory()
    took, measured = build(folder / "index", settings, plan, rows)
    peak = watch.stop()
    index = open_index(folder / "index", "benchmark", verify="size")
    size = sum(path.stat().st_size for path in (folder / "index").iterdir())

    source = f"of {given.run}" if given.run else f"σ = {given.sigma}"
    print(f"{given.rows:,} rows of {given.dims:,} columns, {source}: {plan.summary}\n")
    print("| step | seconds |\n|---|---|")
    for step, seconds in took.items():
        print(f"| {step} | {seconds:,.1f} |")
    print(
        f"\nIndex {size:,} bytes, {size / given.rows:.1f} a row, 1/{2 * given.rows * given.dims / size:.1f} of "
        f"float16; "
        f"peak anonymous memory of the build {peak / 2**20:,.0f} MiB. Spread {measured.spread}; "
        + "; ".join(
            f"{dial.end} {dial.depth}: {dial.probes} of {plan.cells} cells, {dial.candidates} candidates, "
            f"{dial.recall:.3f}"
            for dial in measured.dials
        )
        + "\n"
    )
    compare(index, rows, questions)


def build(
    folder: Path, settings: IndexSettings, plan: IndexPlan, rows: NDArray[np.float16]
) -> tuple[dict[str, float], Measured]:
    """Build in one process, part by part, and measure; return the seconds of each step, and what was measured."""
    count, dims = rows.shape
    took: dict[str, float] = {}

    def timed(step: str, start: float) -> None:
        took[step] = time.perf_counter() - start

    start = time.perf_counter()
    wanted = sample_rows(count, plan.sample)
    pieces = ((int(wanted[i]), rows[wanted[i : i + BLOCK]]) for i in range(0, len(wanted), BLOCK))
    save_trained(train(plan, pieces, count, dims), folder, "benchmark")
    timed(f"train on {plan.sample:,} rows", start)
    start = time.perf_counter()
    ranges = part_ranges(plan, count)
    for number, (first, stop) in enumerate(ranges):
        build_part(folder, "benchmark", number, blocks(rows, first, stop))
    timed(f"code {len(ranges)} parts", start)
    start = time.perf_counter()
    merge_parts(folder, "benchmark")
    timed("merge and digest", start)
    start = time.perf_counter()
    own = questions(count)
    asked = own.vectors(lambda which: rows[which].astype(np.float32))
    truth = exact_search(asked, blocks(rows), truth_depth(count))
    timed("exact truth of 240 questions", start)
    start = time.perf_counter()
    index = open_index(folder, "benchmark", verify="size")
    measured = measure_recall(index, asked, own, truth, lambda which: rows[which], settings.recall)
    record_measured(folder, measured)
    timed("measure", start)
    return took, measured


def compare(index: ApproximateIndex, rows: NDArray[np.float16], questions: NDArray[np.float32]) -> None:
    """Ask the same questions of every kind of search, together and one by one, and print."""
    score = scored_by(lambda which: rows[which])
    exact_search(questions[:1], blocks(rows, 0, min(len(rows), 10 * BLOCK)), K)
    together: dict[str, tuple[float, Neighbours]] = {}
    for name, ask in (
        ("exact", lambda: exact_search(questions, blocks(rows), K)),
        ("float32 product", lambda: products(questions, rows)),
        ("index", lambda: search(index, questions, K, score)),
        ("index, again", lambda: search(index, questions, K, score)),
    ):
        start = time.perf_counter()
        found = ask()
        together[name] = ((time.perf_counter() - start) / len(questions), found)
    base, truth = together["exact"]
    print(
        f"| {len(questions)} questions together | ms a question | questions/s ÷ exact | recall@10, promoting, "
        f"opposing |"
    )
    print("|---|---|---|---|")
    for name, (seconds, found) in together.items():
        shares = ", ".join(f"{share(getattr(found, end).rows, getattr(truth, end).rows):.3f}" for end in ENDS)
        print(f"| {name} | {seconds * 1e3:.2f} | {base / seconds:.1f} | {shares} |")
    start = time.perf_counter()
    exact_search(questions[:1], blocks(rows), K)
    alone = time.perf_counter() - start
    single = []
    for question in questions[: max(1, len(questions) // 2)]:
        start = time.perf_counter()
        search(index, question[None], K, score)
        single.append(time.perf_counter() - start)
    middle, late = np.quantile(single, [0.5, 0.99])
    print(
        f"\nOne question at a time: index p50 {middle * 1e3:.1f} ms, p99 {late * 1e3:.1f} ms of {len(single)}; "
        f"exact {alone * 1e3:,.0f} ms, {alone / middle:.0f} times p50."
    )


ENDS = ("largest", "smallest")


def share(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Return the share of the true rows that were found."""
    return float(np.mean([np.isin(right, line).mean() for line, right in zip(found, true, strict=True)]))


def products(questions: NDArray[np.float32], rows: NDArray[np.float16]) -> Neighbours:
    """Search exactly with one float32 matrix product a block: the fastest that a CPU does without an index."""
    scored = ((start, questions @ block.astype(np.float32).T) for start, block in blocks(rows))
    return exact_search_scores(scored, len(questions), K)


def blocks(
    rows: NDArray[np.float16], first: int = 0, stop: int | None = None
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Yield (first row, rows) of consecutive blocks."""
    last = len(rows) if stop is None else stop
    for start in range(first, last, BLOCK):
        yield start, np.array(rows[start : min(last, start + BLOCK)])


def made_rows(folder: Path, given: argparse.Namespace) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return made-up rows, and questions."""
    rows = make_rows(folder / "rows.f16", given.rows, given.dims, given.sigma)
    return rows, drawn(given.queries, given.dims, given.sigma, -1)


def real_rows(folder: Path, given: argparse.Namespace) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return a run's rows as its recipe compares them, and those that were left out of them."""
    manifest, recipe = Manifest.load(given.run), load_config(given.run / "config.yaml").recipe.stored
    store, comparison = Store(given.run), load_comparison(given.run, manifest, recipe)
    random = np.random.Generator(np.random.Philox(key=1))
    asked = np.sort(random.choice(store.rows, given.queries, replace=False))
    path, kept = folder / "rows.f16", store.rows - given.queries
    with path.open("wb") as out:
        for start, block in compared_blocks(store, comparison):
            inside = ~np.isin(np.arange(start, start + len(block)), asked)
            out.write(block[inside].astype(np.float16).tobytes())
    questions = comparison.query_vectors(torch.from_numpy(store.vectors(asked))).numpy()
    return np.memmap(path, dtype=np.float16, mode="r", shape=(kept, store.dims)), questions


def make_rows(path: Path, count: int, dims: int, sigma: float) -> NDArray[np.float16]:
    """Write rows to a file, a block at a time, and map it."""
    with path.open("wb") as out:
        for start in range(0, count, BLOCK):
            out.write(drawn(min(BLOCK, count - start), dims, sigma, start).astype(np.float16).tobytes())
    return np.memmap(path, dtype=np.float16, mode="r", shape=(count, dims))


def drawn(count: int, dims: int, sigma: float, block: int) -> NDArray[np.float32]:
    """Draw rows: a cluster's direction and one of their own, in any proportion, and a length."""
    shared, random = (np.random.Generator(np.random.Philox(key=[key, 7])) for key in (0, block + 2))
    spectrum = ((1 + 16 * np.arange(dims) / dims) ** -0.5).astype(np.float32)
    sizes = 1 / (np.arange(CLUSTERS) + 10)
    which = random.choice(CLUSTERS, count, p=sizes / sizes.sum())
    centres, own = (
        source.standard_normal((many, dims), dtype=np.float32) * spectrum
        for source, many in ((shared, CLUSTERS), (random, count))
    )
    part = random.beta(2, 2, count).astype(np.float32)[:, None]
    rows = part * unit(centres)[which] + (1 - part) * unit(own)
    return (unit(rows) * np.exp(sigma * random.standard_normal((count, 1)))).astype(np.float32)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the rows at length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class PeakMemory:
    """Watches the process's anonymous memory from now on."""

    def __init__(self) -> None:
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Return the largest that was seen, in bytes."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            self._peak = max(self._peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)


if __name__ == "__main__":
    main()
