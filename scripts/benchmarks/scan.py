"""Measure full scans against what the machine can do in the same run: read memory, and multiply matrices.

A scan of n rows of D columns for m queries can't take less than reading the codes once, nor than the 2·m·n·D
multiplications and additions of a float32 matrix product; whichever takes longer is the floor. Both rates are measured
between the scans, with all cores: the best of numpy's and torch's products of 2,048 × 2,048, and the best of several
ways to read a gigabyte. Scans, floors and codecs take turns, and medians are printed: other work on the machine slows
all of them. The store's files are in the page cache, as they are right after a build. With --one-core, codes in memory
are scored by one thread, and everything is measured in processor time, since other work on the machine isn't ours; run
it with OPENBLAS_NUM_THREADS=1 and OMP_NUM_THREADS=1.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from store import clock, exhausted, plan, random_rows, square

from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest
from influence.store.reader import Store
from influence.store.shard import RowMeta
from influence.store.writer import write_shard

CODED = 64
"""Distinct rows; the others repeat them."""


def main() -> None:
    """Make a store of every codec, scan each for every number of queries, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--modules", type=int, default=21)
    parser.add_argument("--side", type=int, default=64, help="P and Q; 21 modules of 64 × 64 make 86,016 columns")
    parser.add_argument("--codecs", nargs="+", default=["float16", "int8", "int4", "bits"])
    parser.add_argument("--queries", nargs="+", type=int, default=[1, 64, 1024])
    parser.add_argument("--threads", type=int, help="of a scan; one a core unless given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one-core", action="store_true", help="codes in memory, one thread, processor time")
    parser.add_argument("--folder", type=Path, help="where the stores are made; a temporary folder inside it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        stores = {name: make(Path(folder) / name, args, name) for name in args.codecs}
        measure(stores, args)


def measure(stores: dict[str, Store], args: argparse.Namespace) -> None:
    """Let floors and scans take turns, and print a line a codec and number of queries."""
    dims = next(iter(stores.values())).dims
    asked = np.random.default_rng(1).standard_normal((max(args.queries), dims), dtype=np.float32)
    cores = 1 if args.one_core else os.cpu_count() or 1
    timer = time.process_time if args.one_core else time.perf_counter
    read, multiply = reading(cores, timer), multiplying(timer)
    print(f"{args.rows:,} rows of {dims:,} columns, {cores} cores; ns a coordinate and query")
    print(f"{'':10}{'queries':>8}{'scan':>9}{'floor':>9}{'ratio':>7}  {'bound by':<10}", end="")
    print(f"{'GB/s':>6}{'of':>6}{'GF/s':>7}{'of':>6}")
    for name, store in stores.items():
        for count in args.queries:
            scan = scanner(store, asked[:count], args)
            scan()
            taken, bandwidths, rates = [], [], []
            for _ in range(args.repeats):
                bandwidths.append(read())
                rates.append(multiply())
                taken.append(clock(scan, timer))
            line(name, store, count, median(taken), median(bandwidths), median(rates))


def line(name: str, store: Store, count: int, seconds: float, bandwidth: float, rate: float) -> None:
    """Print one line: what the scan took, and what it could not have undercut."""
    size, flops = store.rows * store.codec.row_bytes, 2 * count * store.rows * store.dims
    reads, products = size / bandwidth, flops / rate
    floor, bound = max((reads, "memory"), (products, "products"))
    each = 1e9 / (store.rows * store.dims * count)
    print(
        f"{name:<10}{count:>8,}{seconds * each:>9.4f}{floor * each:>9.4f}{floor / seconds:>7.2f}  {bound:<10}"
        f"{size / seconds / 1e9:>6.1f}{bandwidth / 1e9:>6.1f}{flops / seconds / 1e9:>7.0f}{rate / 1e9:>6.0f}"
    )


def scanner(store: Store, queries: np.ndarray, args: argparse.Namespace) -> Callable[[], None]:
    """Return a scan of a whole store."""
    if not args.one_core:
        return lambda: exhausted(store.scores(queries, threads=args.threads))
    encoded, _ = store.encoded(np.arange(store.rows), store.arrays(store.rows))
    score = store.codec.scorer(queries)

    def scan(step: int = 512) -> None:
        for start in range(0, store.rows, step):
            score({key: array[start : start + step] for key, array in encoded.items()})

    return scan


def reading(cores: int, timer: Callable[[], float], size: int = 2**30) -> Callable[[], float]:
    """Return what measures how fast some cores together read memory, in bytes a second."""
    held = np.ones(size // 8, dtype=np.int64)
    parts, pool, whole = np.array_split(held, cores), ThreadPoolExecutor(cores), torch.from_numpy(held)

    def best() -> float:
        ways = (lambda: list(pool.map(np.bitwise_or.reduce, parts)), lambda: list(pool.map(np.max, parts)), whole.max)
        return held.nbytes / min(clock(way, timer) for way in ways)

    return best


def multiplying(timer: Callable[[], float], side: int = 2048) -> Callable[[], float]:
    """Return what measures how fast float32 matrices are multiplied, in operations a second."""
    left, right = np.random.default_rng(0).standard_normal((2, side, side), dtype=np.float32)
    ways = (lambda: left @ right, lambda: torch.from_numpy(left) @ torch.from_numpy(right))
    return lambda: 2 * side**3 / min(clock(way, timer) for way in ways for _ in range(3))


def make(folder: Path, args: argparse.Namespace, name: str) -> Store:
    """Write a store of one shard whose rows repeat a few."""
    manifest: Manifest = plan(args.rows, square(args.modules, args.side), args.rows, CodecSettings(codec=name))  # type: ignore[arg-type]
    manifest.save(folder)
    codec = codec_for(manifest, manifest.modules)
    few, _, _ = random_rows(manifest.shards[0].model_copy(update={"stop": CODED}), manifest.dims, 50)
    times = -(-args.rows // CODED)
    encoded = {key: np.tile(array, (times, 1))[: args.rows] for key, array in codec.encode(few).items()}
    count, nothing = args.rows, [None] * args.rows
    meta = RowMeta(
        id=[f"row-{row}" for row in range(count)],
        source=nothing,
        uri=nothing,
        label=nothing,
        tokens=np.ones(count, dtype=np.int32),
        loss=np.ones(count, dtype=np.float32),
        text=["text"] * count,
    )
    write_shard(folder, manifest.shards[0], codec, encoded, np.ones(count, np.float32), meta, manifest.fingerprint)
    return Store(folder)


if __name__ == "__main__":
    main()
