"""How fast a run finds rows for questions: by its approximate index, and by a scan of every row's codes.

    python scripts/benchmarks/questions.py runs/x --data wikitext2.jsonl --queries 64

The questions are texts that the run wasn't built from, captured by its model; ten rows are wanted at each end, as the
recipe compares them, before anything is scored exactly. Both ways are those of `influence query`: the index proposes
and the rows' codes decide, or all codes are scored. Asked one by one and all together; capture isn't counted.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from search import ENDS, share

import influence
from index.approximate.merge import open_index
from index.approximate.search import search
from index.exact import exact_search_scores
from index.neighbours import Neighbours
from influence.data.queries import as_example
from influence.stages.index import FOLDER, candidate_scores, index_fingerprint, scored_blocks

K = 10


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="built with an approximate index")
    parser.add_argument("--data", type=Path, required=True, help="jsonl with a text a line")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--words", type=int, default=40, help="of a text that are asked about")
    given = parser.parse_args()
    run = influence.open(given.run)
    with given.data.open(encoding="utf-8") as lines:
        texts = [" ".join(json.loads(line)["text"].split()[: given.words]) for line in islice(lines, given.queries)]
    captured = run.capture([as_example({"text": text}) for text in texts])
    vectors = run.comparison.query_vectors(captured.gradients).numpy()
    index = open_index(given.run / FOLDER, index_fingerprint(run.manifest, run.recipe.stored))
    score = partial(candidate_scores, run.store, run.comparison)

    def scan(asked: np.ndarray) -> Neighbours:
        return exact_search_scores(scored_blocks(run.store, run.comparison, asked), len(asked), K)

    def indexed(asked: np.ndarray) -> Neighbours:
        return search(index, asked, K, score)

    ways = {"scan": scan, "index": indexed}
    for ask in ways.values():
        ask(vectors[:1])
    print(f"{run.rows:,} rows of {run.store.dims:,} columns, {run.store.codec.summary}; {index.trained.plan.summary}\n")
    print("| way | one: p50, p99 ms | together: ms a question | recall@10, promoting, opposing |\n|---|---|---|---|")
    truth = None
    for name, ask in ways.items():
        single = [timed(ask, vectors[number : number + 1])[0] for number in range(len(vectors))]
        middle, late = 1e3 * np.quantile(single, [0.5, 0.99])
        seconds, found = timed(ask, vectors)
        truth = truth or found
        shares = ", ".join(f"{share(getattr(found, end).rows, getattr(truth, end).rows):.3f}" for end in ENDS)
        print(f"| {name} | {middle:.1f}, {late:.1f} | {1e3 * seconds / len(vectors):.1f} | {shares} |", flush=True)


def timed(ask: Callable[[np.ndarray], Neighbours], vectors: np.ndarray) -> tuple[float, Neighbours]:
    """Return the seconds of a search, and what it found."""
    start = time.perf_counter()
    found = ask(vectors)
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main()
