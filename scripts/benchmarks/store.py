"""Measure the store against a plain copy of the same bytes, as ratios of one run.

Everything is measured on one disk, steps taking turns, and the median of the repeats is printed. `fsync` is part of
every write, the copy's included; the copy also reads its bytes, from the page cache. Reads come from the page cache
too, as they do right after a build: what is measured is our own work, not the disk. Peak memory needs Linux.

With --scoring it measures every codec in memory instead: the time to encode a row, and how fast queries are scored from
codes, for 21 modules of 32 x 32 and of 64 x 64. One core does it all, whatever the number of threads.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import numpy as np

from influence.axes import ModuleColumns
from influence.store.codec import Codec, CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, ShardRange, fingerprint_of
from influence.store.reader import Store
from influence.store.shard import RowMeta
from influence.store.writer import write_shard


def main() -> None:
    """Write, copy and read a store of random unit rows, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--modules", type=int, default=24, help="how many; 24 of 16 x 16 make 6,144 columns")
    parser.add_argument("--side", type=int, default=16, help="P and Q")
    parser.add_argument("--codec", default="float16")
    parser.add_argument("--rank", type=int, help="of codec factors")
    parser.add_argument("--scoring", action="store_true", help="measure the codecs in memory, and no store")
    parser.add_argument("--rows-per-shard", type=int, default=20_000)
    parser.add_argument("--block", type=int, default=4096)
    parser.add_argument("--random", type=int, default=2000, help="rows read by number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--text", type=int, default=500, help="characters of text a row")
    parser.add_argument(
        "--folder", type=Path, help="a folder on the disk to measure; a temporary one inside it is used"
    )
    args = parser.parse_args()
    if args.scoring:
        scoring()
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(Path(folder), args)


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Let writing and copying take turns, then reading; print the medians."""
    chosen = CodecSettings(codec=args.codec, rank=args.rank)
    manifest = plan(args.rows, square(args.modules, args.side), args.rows_per_shard, chosen)
    run = folder / "run"
    manifest.save(run)
    writes, copies, written = [], [], []
    for _ in range(args.repeats):
        writes.append(write(run, manifest, args.text))
        written = sorted((run / "rows").iterdir())
        copies.append(clock(lambda files=written: copy(files, folder)))
    writing, copying = median(writes), median(copies)
    size = sum(path.stat().st_size for path in written)

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        timings = [pool.apply(read_afresh, (run, args.block, written)) for _ in range(args.repeats)]
    slurping, first, again, grown = (median(column) for column in zip(*timings, strict=True))
    opening = clock(lambda: Store(run))
    store = Store(run)
    store.verify()
    rows = np.random.default_rng(1).integers(0, args.rows, args.random)
    picking = clock(lambda: store.vectors(rows))
    describing = clock(lambda: store.meta(rows[:100]))
    query = np.random.default_rng(2).standard_normal((1, store.dims), dtype=np.float32)
    scanning = clock(lambda: exhausted(store.scores(query)))

    mb = size / 1e6
    row_mb, decoded_mb = store.codec.row_bytes / 1e6, store.dims * 4 / 1e6
    shards = len(manifest.shards)
    print(f"{args.rows:,} rows of {store.dims:,} columns, {store.codec.summary}, {shards} shards, {mb:,.0f} MB")
    print(f"{'':34}{'rows/s':>12}{'MB/s':>10}{'ratio':>8}  of")
    line("copy the files, fsync", args.rows, mb, copying, None, "")
    line("write (encode, digest, fsync)", args.rows, mb, writing, copying, "the copy")
    line("read the files whole", args.rows, mb, slurping, None, "")
    line("blocks, first time (digests)", args.rows, mb, first, slurping, "reading whole")
    line("blocks, digests known", args.rows, mb, again, slurping, "reading whole")
    line("score one query", args.rows, mb, scanning, slurping, "reading whole")
    line(f"{args.random:,} rows by number", args.random, args.random * row_mb, picking, None, "")
    line("100 rows' metadata", 100, 0.0, describing, None, "")
    print(f"open: {opening * 1e3:.1f} ms; peak memory while reading blocks grew by {grown:,.0f} MB")
    print(f"one block is {args.block * decoded_mb:,.0f} MB decoded, one shard {args.rows_per_shard * row_mb:,.0f} MB")


def scoring(rows: int = 512) -> None:
    """Print each codec's bytes, time to encode a row, and scores a second, for one query and for sixteen."""
    print(f"{'':20}{'bytes/row':>10}{'cosine':>8}{'encode ms':>11}{'rows/s':>10}{'GB/s':>7}{'16 queries':>12}")
    for side in (32, 64):
        modules = square(21, side)
        unit = np.random.default_rng(0).standard_normal((64, modules[-1].stop), dtype=np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        print(f"{modules[-1].stop:,} columns, {len(modules)} modules of {side} × {side}")
        kinds = [{"codec": name} for name in ("float16", "int8", "int4", "bits")]
        for kind in (*kinds, {"codec": "factors", "rank": 1}, {"codec": "factors", "rank": 2}):
            score(codec_for(CodecSettings.model_validate(kind), modules), unit, rows)


def score(codec: Codec, unit: np.ndarray, rows: int) -> None:
    """Print one codec's line: the median of five, in processor time, since other work on the machine isn't ours."""
    queries = np.random.default_rng(1).standard_normal((16, codec.dims), dtype=np.float32)
    encoding = median(clock(lambda: codec.encode(unit), time.thread_time) for _ in range(5)) / len(unit)
    few = codec.encode(unit)
    cosine = np.mean(np.einsum("nd,nd->n", codec.decode(few), unit) / codec.lengths(few))
    many = {key: np.tile(array, (rows // len(unit), 1)) for key, array in few.items()}
    one, sixteen = (
        rows * m / median(clock(lambda m=m: codec.scores(many, queries[:m]), time.thread_time) for _ in range(5))
        for m in (1, 16)
    )
    print(
        f"{codec.summary:<20}{codec.row_bytes:>10,}{cosine:>8.4f}{encoding * 1e3:>11.3f}{one:>10,.0f}"
        f"{one * codec.row_bytes / 1e9:>7.2f}{sixteen:>12,.0f}"
    )


def write(run: Path, manifest: Manifest, characters: int) -> float:
    """Write every shard; return the seconds, those that go into making up the rows left out."""
    seconds = 0.0
    for span in manifest.shards:
        unit, norms, meta = random_rows(span, manifest.dims, characters)
        codec = codec_for(manifest, manifest.modules)

        def shard(s=span, u=unit, n=norms, m=meta, c=codec) -> None:
            write_shard(run, s, c, c.encode(u), n, m, manifest.fingerprint)

        seconds += clock(shard)
    return seconds


def read_afresh(run: Path, block: int, written: list[Path]) -> tuple[float, float, float, float]:
    """Read in a process of its own, which knows no digest and whose peak memory is that of reading.

    Returns:
        Seconds to read the files whole, in blocks with digests, in blocks again; MB by which blocks raised the peak.
    """
    slurping = clock(lambda: slurp(written))
    store = Store(run)
    before = peak_mb()
    first, again = (clock(lambda: exhaust(store, block)) for _ in range(2))
    return slurping, first, again, peak_mb() - before


def square(modules: int, side: int) -> tuple[ModuleColumns, ...]:
    """Return the columns of some modules with Q and P alike."""
    size = side * side
    return tuple(
        ModuleColumns(name=f"{n}", outputs=side, inputs=side, q=side, p=side, start=n * size, stop=(n + 1) * size)
        for n in range(modules)
    )


def plan(rows: int, modules: tuple[ModuleColumns, ...], rows_per_shard: int, chosen: CodecSettings) -> Manifest:
    """Return the manifest of a store."""
    dims = modules[-1].stop
    parts = {"benchmark": "store", "dims": dims}
    starts = range(0, rows, rows_per_shard)
    return Manifest(
        fingerprint=fingerprint_of(parts),
        fingerprint_parts=dict(parts),
        codec=chosen.codec,
        rank=chosen.rank,
        modules=modules,
        dims=dims,
        rows=rows,
        shards=tuple(
            ShardRange(shard=number, start=start, stop=min(rows, start + rows_per_shard))
            for number, start in enumerate(starts)
        ),
    )


def random_rows(span: ShardRange, dims: int, characters: int) -> tuple[np.ndarray, np.ndarray, RowMeta]:
    """Return unit rows, norms and metadata whose text compresses about as English does."""
    random = np.random.default_rng(span.shard)
    rows = random.standard_normal((span.rows, dims), dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1)
    rows /= norms[:, None]
    words = np.array(["influence", "of", "the", "row", "on", "what", "a", "model", "said", "gradient"])
    text = [" ".join(random.choice(words, characters // 5)) for _ in range(span.rows)]
    numbers = range(span.start, span.stop)
    meta = RowMeta(
        id=[f"row-{row}" for row in numbers],
        source=["benchmark"] * span.rows,
        uri=[f"file.jsonl#L{row}" for row in numbers],
        label=[None] * span.rows,
        tokens=np.full(span.rows, characters // 4, dtype=np.int32),
        loss=np.ones(span.rows, dtype=np.float32),
        text=text,
    )
    return rows, norms, meta


def copy(paths: list[Path], folder: Path) -> None:
    """Copy files the plain way, flushed to the disk."""
    for path in paths:
        with path.open("rb") as source, (folder / path.name).open("wb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())


def slurp(paths: list[Path]) -> None:
    """Read files the plain way, in chunks."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def exhaust(store: Store, block: int) -> None:
    """Read every row in blocks."""
    exhausted(store.blocks(block))


def exhausted(blocks: Iterable[object]) -> None:
    """Take blocks until there are no more."""
    for _ in blocks:
        pass


def clock(work: Callable[[], object], timer: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that something takes."""
    start = timer()
    work()
    return timer() - start


def peak_mb() -> float:
    """Return the process's peak resident memory.

    Not `ru_maxrss`, which a child process takes over from its parent.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def line(what: str, rows: int, mb: float, seconds: float, base: float | None, of: str) -> None:
    """Print a line of the table; the ratio is of speeds, so 1.00 is as fast as the base."""
    rate = f"{mb / seconds:>10,.0f}" if mb else f"{'':>10}"
    ratio = f"{base / seconds:>8.2f}  {of}" if base else ""
    print(f"{what:<34}{rows / seconds:>12,.0f}{rate}{ratio}")


if __name__ == "__main__":
    main()
