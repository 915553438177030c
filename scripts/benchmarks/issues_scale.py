"""How the time and memory of an examination grow with the rows.

    python scripts/benchmarks/issues_scale.py --rows 10000 30000 100000
    python scripts/benchmarks/issues_scale.py --rows 1000000 --dims 256 --keep /big/disk
    python scripts/benchmarks/issues_scale.py --run /big/disk/run-1000000-256 --set neighbours.compared=5000

For each number of rows a run is written straight through the store's writer, with made-up gradients like those of
`search.py` (2,000 clusters of very different sizes, a falling spectrum, log-normal lengths), texts of invented words
and ten labels; a hundredth of the rows are copies, and as many stand alone with long gradients. It is then examined by
`influence issues` as anybody would, in a process of its own with its workers. Printed are its seconds by the clock and
of all its processors, those by the clock from the first file of the graph of nearest rows to the last, and the peak of
the anonymous memory of all its processes together (needs Linux). Where a graph is approximate its measured recall
stands beside. `--keep` leaves the runs where they are made; `--run` examines one of these again, without the graph that
stands there: what an examination that was killed left of one is taken up.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
from search import drawn
from store import plan, square

from influence.config import parse_config, save_config
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, ShardRange, fingerprint_of
from influence.store.shard import RowMeta
from influence.store.writer import write_shard

SHARD = 10_000
COPIES = 100
"""One row in so many is a copy of the row before."""
CLASSES = 10
WORDS = np.array([f"{a}{b}{c}" for a in "bdfgklmnprstv" for b in ("a", "e", "io", "u") for c in "lmnrstx"])


def main() -> None:
    """Make runs of several sizes, examine each, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--dims", type=int, default=256, help="columns, a multiple of 256")
    parser.add_argument("--codec", default="float16")
    parser.add_argument("--checks", help="as of `influence issues`; unset, all that apply")
    parser.add_argument("--set", action="append", default=[], help="as of `influence issues`")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--folder", type=Path, help="a folder with room for the runs; a temporary one in it is used")
    where.add_argument("--keep", type=Path, help="a folder where the runs are made and stay")
    where.add_argument("--run", type=Path, help="a run that was kept: examined again in place of --rows")
    given = parser.parse_args()
    print("| rows | columns | s | CPU s | CPU ms a row | of the graph, s | peak memory | nearest, most opposed found |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    if given.run is not None:
        for graph in (given.run / "neighbours").glob("*/graph.json"):
            shutil.rmtree(graph.parent)
        measure(given.run, given.run.with_suffix(".issues.parquet"), given)
        return
    for rows in given.rows:
        with ExitStack() as stack:
            folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
            run = folder / f"run-{rows}-{given.dims}"
            make_run(run, rows, given.dims, given.codec)
            measure(run, run.with_suffix(".issues.parquet"), given)


def measure(run: Path, out: Path, given: argparse.Namespace) -> None:
    """Examine a run, and print."""
    command = [sys.executable, "-m", "influence.cli.main", "issues", str(run), "--out", str(out), "--overwrite"]
    command += ["--format", "json", *(["--checks", given.checks] if given.checks else [])]
    command += [word for setting in given.set for word in ("--set", setting)]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = PeakMemory(process.pid)
        said, _ = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    peak, found = watch.stop(), json.loads(said)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows, dims = found["rows"], Manifest.load(run).dims
    graph = seconds_of_graph(run / "neighbours")
    told = found["neighbours"] or "no check asked"
    shares = ", ".join(word for word in told.split() if word.endswith("%")) or "exact"
    print(
        f"| {rows:,} | {dims:,} | {seconds:,.1f} | {spent:,.1f} | {1e3 * spent / rows:.2f} | {graph:,.1f} | "
        f"{peak / 2**20:,.0f} MiB | {shares} |",
        flush=True,
    )
    for issue in found["issues"]:
        print(f"{rows:,}: {issue['issue']} {issue['flagged']:,}. {issue['rule']}", file=sys.stderr)


def seconds_of_graph(folder: Path) -> float:
    """Return the seconds from the first to the last change of a graph's files."""
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()]
    return max(times) - min(times) if times else 0.0


def make_run(folder: Path, rows: int, dims: int, codec: str) -> None:
    """Write a finished run of made-up rows."""
    chosen = CodecSettings(codec=codec)  # type: ignore[arg-type]
    manifest = plan(rows, square(dims // 256, 16), SHARD, chosen)
    parts = {**manifest.fingerprint_parts, "rows": rows, "data.columns": json.dumps({"text": "text", "label": "label"})}
    manifest = manifest.model_copy(update={"fingerprint_parts": parts, "fingerprint": fingerprint_of(parts)})
    manifest.save(folder)
    settings = {
        "model": {"path": "made-up", "kind": "sequence_classification"},
        "data": {"path": str(folder / "none.jsonl")},
        "recipe": {"name": "graddot", "projection": {"p": 16, "q": 16}},
        "store": {"codec": codec, "rows_per_shard": SHARD},
    }
    save_config(parse_config(settings), folder / "config.yaml")
    for span in manifest.shards:
        write_rows(folder, span, manifest)


def write_rows(folder: Path, span: ShardRange, manifest: Manifest) -> None:
    """Write a shard."""
    random = np.random.default_rng(span.shard)
    gradients = drawn(span.rows, manifest.dims, 0.8, span.start)
    alone = np.arange(7, span.rows, COPIES)
    gradients[alone] = 60 * random.standard_normal((len(alone), manifest.dims)) / manifest.dims**0.5
    picked = random.integers(0, len(WORDS), (span.rows, 30))
    text = [" ".join(WORDS[line]) for line in picked]
    label = random.integers(0, CLASSES, span.rows)
    for row in range(COPIES, span.rows, COPIES):
        gradients[row], text[row], label[row] = gradients[row - 1], text[row - 1], label[row - 1]
    norms = np.linalg.norm(gradients, axis=1).astype(np.float32)
    numbers = range(span.start, span.stop)
    meta = RowMeta(
        id=[f"row-{row}" for row in numbers],
        source=[f"source-{row % 7}" for row in numbers],
        uri=[None] * span.rows,
        label=[f"class-{code}" for code in label],
        tokens=np.ones(span.rows, dtype=np.int32),
        loss=random.exponential(1.0, span.rows).astype(np.float32),
        text=text,
    )
    codec = codec_for(manifest, manifest.modules)
    write_shard(folder, span, codec, codec.encode(gradients / norms[:, None]), norms, meta, manifest.fingerprint)


class PeakMemory:
    """Watches the anonymous memory of a process and of all that it starts."""

    def __init__(self, process: int) -> None:
        self._process = psutil.Process(process)
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
        while not self._done.wait(0.1):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                return
            self._peak = max(self._peak, sum(map(anonymous, family)))


def anonymous(process: psutil.Process) -> int:
    """Return a process's anonymous memory in bytes; 0 of one that is gone."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 if "RssAnon:" in status else 0


if __name__ == "__main__":
    main()
