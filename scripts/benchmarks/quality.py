"""How well each method's scores predict what training on other rows does, beside what its rows cost.

    nice -n 10 python scripts/benchmarks/truth.py --data paragraphs.jsonl --cache /tmp/quality    # once, about an hour
    python scripts/benchmarks/quality.py --data paragraphs.jsonl --cache /tmp/quality --out quality.md quality.json

Columns. LDS: linear datamodeling score over the retrained models of the cache, ± its standard error over queries.
R@k: share of the reference's ten highest rows among the method's k highest; the reference is exact EK-FAC. Exact: the
LDS when the reference scores the method's k highest rows of each query and every other row scores zero; + BM25: those
of BM25 too. Floats: float32 numbers stored a row. Build: CPU seconds to score the first query. A query: CPU seconds for
each query more. A row that scores exactly zero is proposed by nobody.

A new method is a line in `methods.METHODS`. With `--keep` scores are kept in the cache and taken from there the next
time, so that a table can be printed anew while more models are trained; remove them when code that scores changes.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import METHODS, Examples, Method, Subject
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging
from truth import Corpus, Settings, model_folder, open_cache, per_token

from influence.errors import DataError
from influence.evaluate.lds import linear_datamodeling_score, reliability
from influence.evaluate.subsets import membership
from influence.task import CausalLM

TOP, WITHIN = 10, (10, 100, 200)
"""How many of the reference's highest rows are looked for, and how deep in a method's own ranking."""


@dataclass(frozen=True)
class Truth:
    """What was measured on the retrained models, as log-likelihoods: positive promotes.

    Attributes:
        held: Which rows each was trained on, [subsets, rows].
        outputs: [subsets, queries], one seed each.
        once: Those of `outputs` that were trained a second time, [pairs, queries].
        again: The same halves under the second seed, [pairs, queries].
    """

    held: np.ndarray
    outputs: np.ndarray
    once: np.ndarray
    again: np.ndarray


def read_truth(cache: Path, rows: int) -> Truth:
    """Return what the cache has by now; it may still be growing."""
    found = {path.stem: _arrays(path) for path in sorted(cache.glob("subset-[0-9][0-9][0-9].npz"))}
    again = {stem: cache / f"{stem}-again.npz" for stem in found if (cache / f"{stem}-again.npz").exists()}
    if len(found) < 3 or not again:
        raise DataError(
            f"{cache} has {len(found)} retrained models and {len(again)} second seeds: run scripts/benchmarks/truth.py "
            "with this --cache until there are at least 3 and 1."
        )
    return Truth(
        held=membership([arrays["subset"] for arrays in found.values()], rows),
        outputs=-np.stack([arrays["queries"] for arrays in found.values()]),
        once=-np.stack([found[stem]["queries"] for stem in again]),
        again=-np.stack([_arrays(path)["queries"] for path in again.values()]),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


Found = dict[str, Any]
"""What was found of one method; the names are those of the JSON, and of `COLUMNS`."""

COLUMNS: dict[str, Callable[[Found], str]] = {
    "method": lambda found: found["method"],
    "LDS": lambda found: f"{found['lds']:.3f} ± {found['lds_error']:.3f}",
    "± subsets": lambda found: f"{found['lds_subset_error']:.3f}",
    **{f"R@{k}": lambda found, k=k: f"{found['recall'][k]:.2f}" for k in WITHIN},
    "exact": lambda found: f"{found['exact']:.3f}",
    "+ BM25": lambda found: f"{found['exact_with_bm25']:.3f}",
    "floats": lambda found: "text" if found["floats"] is None else f"{found['floats']:,.0f}",
    "build s": lambda found: f"{found['build_seconds']:.1f}",
    "a query s": lambda found: f"{found['query_seconds']:.3f}",
}


def highest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return which rows are among the k highest of each query, [queries, rows], bool; none that scores zero."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.zeros(scores.shape, bool)
    np.put_along_axis(found, best, True, axis=1)
    return found & (scores != 0)


def timed(method: Method, subject: Subject, rows: Examples, queries: Examples) -> tuple[np.ndarray, float, float]:
    """Return all scores, the seconds to the first query's, and the seconds of each query more."""
    start = time.process_time()
    method.scores(subject, rows, queries.first(1))
    first = time.process_time()
    scores = method.scores(subject, rows, queries)
    each = (time.process_time() - first - (first - start)) / max(1, len(queries.parts) - 1)
    return scores, first - start, max(0.0, each)


def kept_or_timed(
    name: str, folder: Path | None, subject: Subject, rows: Examples, queries: Examples
) -> tuple[np.ndarray, float, float]:
    """Return `timed` of a method, from a folder where it was kept; None keeps nothing."""
    path = None if folder is None else folder / f"{name.replace(' ', '-')}.npz"
    if path is not None and path.exists():
        held = _arrays(path)
        return held["scores"], float(held["build"]), float(held["each"])
    scores, build, each = timed(METHODS[name], subject, rows, queries)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        np.savez(path, scores=scores, build=build, each=each)
    return scores, build, each


def judge(
    scores: np.ndarray, truth: Truth, reference: np.ndarray, lexical_scores: np.ndarray, candidates: int
) -> Found:
    """Return what is found of one method's scores, but for its costs."""
    found = linear_datamodeling_score(scores, truth.held, truth.outputs)
    best, proposed = highest(reference, TOP), highest(scores, candidates)
    joined = proposed | highest(lexical_scores, candidates)
    exact, with_bm25 = (
        linear_datamodeling_score(reference * kept, truth.held, truth.outputs).score for kept in (proposed, joined)
    )
    return {
        "lds": found.score,
        "lds_error": found.query_error,
        "lds_subset_error": found.subset_error,
        "recall": {k: float((highest(scores, k) & best).sum() / best.sum()) for k in WITHIN},
        "silent_queries": found.silent,
        "exact": exact,
        "exact_with_bm25": with_bm25,
    }


def write(path: Path, about: dict[str, Any], found: list[Found]) -> None:
    """Write the table as JSON or as markdown, by the file's ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**about, "methods": found}, indent=2), encoding="utf-8")
        return
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in found)]
    facts = "; ".join(f"{key}: {value}" for key, value in about.items())
    path.write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{facts}\n", encoding="utf-8")


def describe(settings: Settings, corpus: Corpus, cache: Path, truth: Truth) -> dict[str, Any]:
    """Return the facts that belong under the table."""
    full, share = _arrays(cache / "full.npz"), reliability(truth.once, truth.again, truth.outputs)
    return {
        "rows": settings.rows,
        "tokens": sum(len(part.input_ids) for part in corpus.rows),
        "queries": settings.queries,
        "subsets": len(truth.outputs),
        "pairs of seeds": len(truth.again),
        "share of variance that is the subset's": round(share, 3),
        "ceiling of LDS": round(max(0.0, share) ** 0.5, 3),
        "loss a token, training": round(per_token(full["rows"], corpus.rows), 3),
        "loss a token, queries": round(per_token(full["queries"], corpus.queries), 3),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def main() -> None:
    """Score, judge and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="what truth.py was given")
    options.add_argument("--cache", type=Path, required=True, help="what truth.py filled")
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    options.add_argument("--reference", default="ekfac", choices=list(METHODS), help="what decides among candidates")
    options.add_argument("--candidates", type=int, default=200, help="a query, for the columns after exact scoring")
    options.add_argument("--keep", action="store_true", help="keep scores in the cache, and take those that are there")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, nargs="*", default=[], help="files to write: .json, .md")
    given = options.parse_args()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    corpus, settings = open_cache(given.cache, given.data)
    truth = read_truth(given.cache, settings.rows)
    folders = tuple(model_folder(given.cache, epoch + 1) for epoch in range(settings.epochs))
    subject = Subject(LlamaForCausalLM.from_pretrained(folders[-1]).eval(), CausalLM(), folders)
    trained, asked = Examples(corpus.rows, corpus.row_texts), Examples(corpus.queries, corpus.query_texts)
    about, console = describe(settings, corpus, given.cache, truth), Console(width=120)
    about |= {"reference": given.reference, "candidates": given.candidates}
    folder = given.cache / "scores" if given.keep else None
    judges = {name: kept_or_timed(name, folder, subject, trained, asked) for name in {given.reference, "bm25"}}
    found: list[Found] = []
    table = Table(*COLUMNS, title=f"reference {given.reference}, {given.candidates} candidates")
    for name in given.methods:
        method = METHODS[name]
        scores, build, each = judges.get(name) or kept_or_timed(name, folder, subject, trained, asked)
        floats = None if method.floats is None else float(method.floats(subject))
        row = judge(scores, truth, judges[given.reference][0], judges["bm25"][0], given.candidates)
        found.append({"method": name, **row, "floats": floats, "build_seconds": build, "query_seconds": each})
        table.add_row(*(cell(found[-1]) for cell in COLUMNS.values()))
        console.log(f"{name}: LDS {row['lds']:.3f}, {build:.1f} s")
        for path in given.out:
            write(path, about, found)
    console.print(table)
    console.print("; ".join(f"{key}: {value}" for key, value in about.items()))


if __name__ == "__main__":
    main()
