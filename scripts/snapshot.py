"""Record what a checkout computes on a tiny model, and compare the records of two checkouts bit by bit.

    python scripts/snapshot.py write FOLDER [--tree CHECKOUT]     # build, ask and record; about a minute of one core
    python scripts/snapshot.py compare BEFORE AFTER               # exit code 1 where they differ

Every preset recipe, codec and verb is run in this process with one thread, on random models of fixed seeds, through the
command line and the public names alone: internals may move between the two checkouts. A record has three parts:

    files     digests of the files of every run: rows, curvature, index, manifest
    numbers   decoded rows, norms, losses, scores, hits and every number of a verb's answer
    words     every other text of a verb's answer, tables included

Left out are times, versions, free disk and digests inside answers; paths are written relative to the record.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from snapshot_material import BASELINES, CODECS, QUERIES, RECIPES, write_material, write_run_file

PARTS = ("files", "numbers", "words")
TIMES = re.compile(r"seconds|hours|per_second|^time|_at$|version|fingerprint|digest|sha256|bytes_free")
MACHINE = ("software", "free disk", "device")
"""Checks of the doctor that describe the machine, not the run."""
BUILDS: dict[str, dict[str, Any]] = {
    **{f"recipe-{name}": {"recipe": name} for name in RECIPES},
    **{f"codec-{name}": {"store": settings} for name, settings in CODECS.items()},
    "index-exact": {"index": {"kind": "exact"}},
    "index-auto": {"index": {"kind": "auto"}},
    "index-rabitq": {"index": {"kind": "rabitq", "recall": 0.5}},
    "index-cells": {"index": {"kind": "ivf_sq8", "recall": 0.5}},
    "classes-whitened": {"data": "classes", "recipe": "whitened"},
    "classes-trak": {"data": "classes", "recipe": "trak"},
    "classes-repsim": {"data": "classes", "recipe": "repsim"},
    "pairs-ekfac": {"data": "pairs", "recipe": "ekfac"},
    "chats-logra": {"data": "chats"},
    "gpt2-whitened": {"recipe": "whitened", "model": {"path": "gpt2"}},
    "mean-loss": {"recipe": "whitened", "task": {"reduction": "mean"}},
}
Record = dict[str, dict[str, Any]]


def main() -> None:
    """Write a record or compare two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    writing = verbs.add_parser("write", help="record what a checkout computes")
    writing.add_argument("folder", type=Path, help="where the record goes; must not exist")
    writing.add_argument("--tree", type=Path, default=Path(__file__).parent.parent, help="the checkout; default: this")
    writing.add_argument("--only", default="", help="a regular expression of the builds to make; the verbs need all")
    comparing = verbs.add_parser("compare", help="compare two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--parts", default=",".join(PARTS), help="which parts decide the exit code")
    comparing.add_argument("--lines", type=int, default=200, help="the most differences to print")
    args = parser.parse_args()
    if args.verb == "write":
        write(args.folder.absolute(), args.tree.resolve(), args.only)
    else:
        parts = set(args.parts.split(","))
        if unknown := parts - set(PARTS):
            parser.error(f"--parts {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
        sys.exit(report(args.before, args.after, parts, args.lines))


def write(folder: Path, tree: Path, only: str) -> None:
    """Build everything in a new folder and write record.json beside it."""
    folder.mkdir(parents=True)
    work = folder / "work"
    work.mkdir()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE"):
        os.environ[name] = "1"
    os.environ.update(
        XDG_DATA_HOME=str(folder / "data-home"), HF_DATASETS_CACHE=str(folder / "cache"), COLUMNS="200", NO_COLOR="1"
    )
    sys.path.insert(0, str(tree))
    write_material(work)
    record: Record = {part: {} for part in PARTS}
    call = command_line(tree)
    chosen = [name for name in BUILDS if re.search(only, name)]
    for name in chosen:
        print(f"build {name}", file=sys.stderr)
        call("build", "-c", write_run_file(work, name, **BUILDS[name]), "--out", work / name, "--workers", 0)
        record["files"].update(_digests(work / name, work))
        _keep(record, name, _contents(work / name, BUILDS[name]), work)
    if not only:
        for name, answer in _verbs(work, call):
            print(name, file=sys.stderr)
            _keep(record, name, answer, work)
    commit = subprocess.run(["git", "-C", tree, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    (folder / "record.json").write_text(json.dumps({"commit": commit.stdout.strip(), **record}))
    shutil.rmtree(work)
    print(f"{folder / 'record.json'}: {', '.join(f'{len(record[part])} {part}' for part in PARTS)}")


def command_line(tree: Path) -> Callable[..., str]:
    """Return a function that runs a verb in this process and returns what it printed."""
    script = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]["influence"]
    module, _, name = script.partition(":")
    command = getattr(import_module(module), name)
    if not Path(str(import_module(module).__file__)).is_relative_to(tree):
        raise SystemExit(f"{module} was imported from {import_module(module).__file__}, expected below {tree}.")

    def call(*argv: Any) -> str:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: Any = None
            try:
                command([str(word) for word in argv])
            except SystemExit as ended:
                code = ended.code
        out.seek(0)
        err.seek(0)
        if code != 0:
            raise SystemExit(f"influence {' '.join(map(str, argv))} ended with {code}:\n{err.read()}")
        return out.read()

    return call


def _digests(run: Path, work: Path) -> Iterator[tuple[str, str]]:
    """Yield every file of a run that holds results with its digest; paths in texts are relative to the record."""
    for path in sorted(run.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.stem != "config":
            data = path.read_bytes()
            if path.name == "manifest.json":
                # Its meta has the date and versions.
                manifest = json.loads(data)
                data = json.dumps({key: manifest[key] for key in sorted(manifest.keys() - {"meta", "sha256"})}).encode()
            data = data.replace(str(work).encode(), b"$WORK") if path.suffix == ".json" else data
            yield str(path.relative_to(work)), hashlib.sha256(data).hexdigest()


def _contents(run_dir: Path, build: dict[str, Any]) -> dict[str, Any]:
    """Return the decoded rows, scores and hits of a run, by the package's public names."""
    import influence

    queries = QUERIES[build.get("data", "texts")]
    if build.get("recipe") in BASELINES:
        # A baseline scores no difference of two completions.
        queries = [query for query in queries if "contrast" not in query]
    with influence.open(run_dir, device="cpu") as run:
        numbers = list(range(run.rows))
        try:
            rows: Any = run.vectors(numbers)
        except influence.InfluenceError as error:
            rows = type(error).__name__
        hits = [json.loads(answer.to_json()) for answer in run.query_many(queries, k=5)]
        return {"rows": rows, "metadata": run.meta(numbers), "scores": run.score(queries), "hits": hits}


def _verbs(work: Path, call: Callable[..., str]) -> Iterator[tuple[str, Any]]:
    """Run every verb and yield its name and its answer: parsed JSON, a table's text, or a written file's columns."""
    lm, classes, pairs = work / "recipe-whitened", work / "classes-whitened", work / "pairs-ekfac"
    queries = ("--queries", work / "texts-queries.jsonl")

    def answer(*argv: Any) -> Any:
        return json.loads(call(*argv, "--format", "json"))

    def table(verb: str, run: Path, *argv: Any, name: str = "out.parquet") -> Any:
        call(verb, run, *argv, "--out", work / name, "--overwrite")
        return _columns(work / name)

    yield "query table", call("query", lm, *queries, "-k", 3)
    yield "query index", answer("query", lm, *queries, "-k", 3, "--no-exact")
    yield "query exact", answer("query", lm, *queries, "-k", 3, "--exact", "--candidates", 20)
    yield "query where", answer("query", lm, *queries, "-k", 3, "--where", "source = 'shelf-1'")
    flags = ("--prompt", "The river", "--completion", " was named", "--contrast", " is green", "-k", 3)
    yield "query contrast", answer("query", lm, *flags)
    yield "query csv", call("query", lm, *queries, "-k", 3, "--format", "csv")
    yield "query html", call("query", lm, *queries, "-k", 3, "--format", "html")
    yield "query chats", answer("query", work / "chats-logra", "--queries", work / "chats-queries.jsonl", "-k", 3)
    yield "score all", table("score", lm, *queries)
    yield "score top", table("score", lm, *queries, "--keep", "top", "-k", 5)
    yield "score self", table("score", lm, "--self")
    yield "score classes", table("score", classes, "--queries", work / "classes-queries.jsonl", "--keep", "rows")
    target = ("--eval", work / "texts-eval.jsonl", "--target", "the harbour freezes")
    yield "issues texts", table("issues", lm, *target, name="texts-issues.parquet")
    yield "issues pairs", table("issues", pairs, name="pairs-issues.parquet")
    every = ("--checks", "all,cleanlab_label,cleanlab_outlier,cleanlab_near_duplicate")
    flags = ("--eval", work / "classes-eval.jsonl", *every, "--out", work / "issues.parquet")
    yield "issues classes", answer("issues", classes, *flags, "--graph", work / "graph.npz")
    yield "issues classes, file", _columns(work / "issues.parquet")
    yield "issues classes, table", call("issues", classes, *flags, "--graph", work / "graph.npz", "--overwrite")
    with np.load(work / "graph.npz", allow_pickle=False) as graph:
        yield "issues classes, graph", {name: graph[name] for name in graph.files if graph[name].dtype.kind in "fiu"}
    by = ("--queries", work / "classes-eval.jsonl", "--by", "source", "--replicates", 100)
    yield "groups", answer("groups", classes, *by)
    yield "groups table", call("groups", classes, *by)
    flags = ("--target", work / "texts-eval.jsonl", "--top", "20%", "--by", "source", "--per-group-cap", 5, "--dedup")
    yield "select", answer("select", lm, *flags, "--out", work / "selection.jsonl")
    yield "select, file", (work / "selection.jsonl").read_text()
    flags = ("--drop", work / "issues.parquet", "--relabel", "--out", work / "clean.jsonl")
    yield "export", answer("export", classes, *flags)
    yield "export, file", (work / "clean.jsonl").read_text()
    yield "export, decisions", _columns(work / "clean.decisions.parquet")
    call("export", "--undo", work / "clean.jsonl", "--out", work / "undone.jsonl")
    same = (work / "undone.jsonl").read_bytes() == (work / "classes.jsonl").read_bytes()
    yield "export, undone", {"equal to the data": same}
    yield "compare", answer("compare", lm, work / "recipe-gradcos", *queries)
    # The bytes on disk include the paths of config.yaml.
    yield "status", {key: value for key, value in answer("status", lm).items() if key != "disk"}
    yield "status spectra", answer("status", lm, "--spectra")
    yield "plan", answer("plan", "-c", work / "recipe-whitened.yaml")
    yield "doctor", {check.pop("name"): check for check in answer("doctor", lm) if check["name"] not in MACHINE}


def _columns(path: Path) -> dict[str, Any]:
    """Return the columns of a Parquet file; parts of it may be written in any order of row groups."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pydict()


def _keep(record: Record, name: str, answer: Any, work: Path) -> None:
    """Put the leaves of an answer into the record: numbers and words apart."""
    for path, leaf in _leaves(answer, name):
        if isinstance(leaf, str):
            record["words"][path] = leaf.replace(str(work), "$WORK")
        else:
            record["numbers"][path] = leaf


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield paths with texts, and with numbers or lists of numbers."""
    if isinstance(value, np.ndarray):
        # float32 written as float64 comes back to the bit.
        yield f"{path}.shape", list(value.shape)
        yield path, value.ravel().tolist()
    elif isinstance(value, bytes):
        yield path, hashlib.sha256(value).hexdigest()
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not TIMES.search(str(key)):
                yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple) and not all(isinstance(item, int | float | None) for item in value):
        yield f"{path}.length", len(value)
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{number}")
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def report(before: Path, after: Path, parts: set[str], most: int) -> int:
    """Print what differs between two records and return the exit code: 1 where a part of `parts` differs."""
    records = [json.loads((folder / "record.json").read_text()) for folder in (before, after)]
    print(f"{before} ({records[0]['commit'][:9]}) against {after} ({records[1]['commit'][:9]})")
    code = 0
    for part in PARTS:
        old, new = (record[part] for record in records)
        lines = [line for path in sorted(old | new) if (line := _difference(old, new, path)) is not None]
        print(f"{part}: {len(old)} before, {len(new)} after, {len(lines)} differ")
        for line in lines[:most]:
            print(f"  {line}")
        if len(lines) > most:
            print(f"  and {len(lines) - most} more")
        code |= bool(lines) and part in parts
    return code


def _difference(old: dict[str, Any], new: dict[str, Any], path: str) -> str | None:
    """Return a line that says how a leaf differs, None where it is the same to the bit."""
    if path not in new or path not in old:
        return f"{path}: only {'before' if path in old else 'after'}"
    ours, theirs = old[path], new[path]
    if repr(ours) == repr(theirs):
        return None
    if isinstance(ours, str) and isinstance(theirs, str):
        if re.fullmatch("[0-9a-f]{64}", ours):
            return f"{path}: bytes differ"
        pairs = zip(ours.splitlines(), theirs.splitlines(), strict=False)
        first = next(((a, b) for a, b in pairs if a != b), (ours[-80:], theirs[-80:]))
        return f"{path}: {first[0].strip()[:160]!r} is now {first[1].strip()[:160]!r}"
    lists = [value if isinstance(value, list) else [value] for value in (ours, theirs)]
    if len(lists[0]) != len(lists[1]):
        return f"{path}: {len(lists[0])} numbers, now {len(lists[1])}"
    first, second = (np.array([math.nan if x is None else x for x in values], dtype=np.float64) for values in lists)
    off = np.nanmax(np.abs(first - second), initial=0.0) / max(float(np.nanmax(np.abs(first), initial=0.0)), 1e-300)
    shown = f"{ours!r} is now {theirs!r}" if not isinstance(ours, list) else f"{int((first != second).sum())} numbers"
    return f"{path}: {shown} (at most {off:.1e} of the largest)"


if __name__ == "__main__":
    main()
