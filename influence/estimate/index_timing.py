"""How long an approximate index takes: what is done to every row, tried on made-up rows, and the rest by operations.

Rows of the run's codec are made up, decoded, made narrow and coded as a build does, and scanned for the queries that an
index is measured with. Training is reckoned from the rate of matrix products of its shapes, since it may take minutes.
Which share of the cells a search reads nobody knows before: measuring is reckoned with all of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from index.approximate.cells import ROUNDS, SHARES
from index.approximate.parts import part_ranges
from index.approximate.questions import questions
from index.approximate.recall import truth_depth
from index.approximate.reduction import Sketch
from index.approximate.search import ApproximateIndex, propose
from index.approximate.train import SEED, train
from index.exact import checked_slices, exact_search_scores
from index.factory import IndexPlan, load_faiss
from index.gemm.dots import row_dots
from influence.axes import ModuleColumns
from influence.engine.threads import torch_threads
from influence.recipes import Recipe
from influence.store.codec import Codec, Encoded

ROWS, FEWEST, BYTES = 1024, 256, 128 * 2**20
"""Rows that are made up: so many, or fewer where they are wide, but enough to train codes from."""

QUERIES = 32
"""That made-up codes are searched for."""

PASSES = 4
"""Searches of all queries that measuring takes at least: both ends, two depths."""


def index_work(
    plan: IndexPlan,
    rows: int,
    codec: Codec,
    recipe: Recipe,
    blocks: Sequence[ModuleColumns],
    threads: int,
) -> tuple[dict[str, float], dict[str, int]]:
    """Return the seconds of each step by one worker, and its tasks; nothing of an index that isn't approximate.

    Args:
        plan: The first that is built; `auto` may climb to others.
        rows: Of the run.
        codec: Of its rows.
        recipe: Of the stored rows.
        blocks: Of its Fisher.
        threads: Of a worker.
    """
    if plan.factory is None or not rows:
        return {}, {}
    with torch_threads(threads):
        count = int(np.clip(BYTES // (4 * plan.dims), FEWEST, ROWS))
        random = np.random.Generator(np.random.Philox(key=SEED))
        directions = random.standard_normal((count, plan.dims), dtype=np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        encoded = codec.encode(directions)
        rate = _product_rate()
        compared = _usual(lambda: codec.decode(encoded)) / count
        if recipe.halved:
            # Into the eigenvectors and back.
            compared += 4 * sum((block.stop - block.start) ** 2 for block in blocks) / rate
        sketch = Sketch(plan.dims, plan.reduced, SEED, plan.turned)
        narrowed = _usual(lambda: [sketch.apply(part) for _, part, _ in checked_slices([(0, directions)], plan.dims)])
        narrowed /= count
        learned, coded, searched = _coded(plan, count)
        share = sum(each**2 for each in SHARES) if plan.cells >= 4 * len(SHARES) else 1.0
        width = plan.width
        assigned = 2 * share * plan.cells * width / rate
        matrix = 2 * plan.reduced * width / rate if plan.has_matrix else 0.0
        asked = len(questions(rows))
        scanned = _scanned(codec, encoded, directions[:asked], recipe, count, asked) + (
            compared if recipe.halved else 0
        )
    parts = len(part_ranges(plan, rows))
    fetched = min(rows, 2 * asked * truth_depth(rows))
    clustered = plan.sample * (assigned * (ROUNDS + 2) + matrix)
    work = {
        "index training": plan.sample * (compared + narrowed + learned) + clustered + _directions(plan, rate),
        "index parts": rows * (compared + narrowed + matrix + assigned + coded),
        "index truth": rows * scanned,
        "index measuring": fetched * (compared + narrowed + assigned) + PASSES * asked * rows * searched,
    }
    return work, {"index training": 1, "index parts": parts, "index truth": parts, "index measuring": 1}


def _coded(plan: IndexPlan, count: int) -> tuple[float, float, float]:
    """Return the seconds that a row takes in training beside k-means, to code it, and to score its code for a query."""
    faiss, width = load_faiss(), plan.width
    rows = np.random.Generator(np.random.Philox(key=SEED)).standard_normal((count, width), dtype=np.float32)
    codes = str(plan.factory).rsplit(",", 1)[-1]
    small = replace(
        plan, factory=f"IVF1,{codes}", dims=width, reduced=width, cells=1, sample=count, part_rows=count, turned=False
    )
    began = time.perf_counter()
    trained = train(small, [(0, rows)], count, width)
    learned = (time.perf_counter() - began) / count
    lists, numbers, cells = trained.lists, np.arange(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    pointer = faiss.swig_ptr
    began = time.perf_counter()
    lists.add_core(count, pointer(rows), pointer(numbers), pointer(cells))
    coded = (time.perf_counter() - began) / count
    trained.faiss.ntotal = lists.ntotal
    index = ApproximateIndex(trained, (trained.faiss,), ((0, count),), None)
    queries = rows[:QUERIES].astype(np.float64)
    searched = _usual(lambda: propose(index, queries, 1, count // 2, 0.0)) / (QUERIES * count)
    return learned, coded, searched


def _scanned(codec: Codec, encoded: Encoded, queries: np.ndarray, recipe: Recipe, count: int, asked: int) -> float:
    """Return the seconds that a row takes when all queries are compared with it exactly."""
    queries = np.resize(queries, (asked, queries.shape[1]))

    def scores() -> np.ndarray:
        if recipe.halved:
            wide = codec.decode(encoded).astype(np.float64)
            return np.stack([row_dots(wide, query) for query in queries.astype(np.float64)]).astype(np.float32)
        return codec.scorer(queries)(encoded)

    def scan() -> None:
        exact_search_scores([(0, scores().astype(np.float32))], asked, min(count, truth_depth(count)))

    return _usual(scan) / count


def _directions(plan: IndexPlan, rate: float) -> float:
    """Return the seconds to find the sample's principal directions, or to draw a rotation."""
    if not plan.has_matrix:
        return 0.0
    side, random = 512, np.random.default_rng(0)
    square = random.standard_normal((side, side))
    solved = _usual(lambda: np.linalg.eigh(square + square.T))
    drawn = _usual(lambda: np.linalg.qr(square))
    width = plan.width
    # Sums in float64 take twice as long as in float32.
    moment = 4 * plan.sample * plan.reduced**2 / rate if "PCA" in str(plan.factory) else 0.0
    solving = solved * (plan.reduced / side) ** 3 if "PCA" in str(plan.factory) else 0.0
    return moment + solving + drawn * (width / side) ** 3


def _product_rate(side: int = 1024) -> float:
    """Return how many operations a second a float32 matrix product does."""
    left, right = np.random.default_rng(0).standard_normal((2, side, side), dtype=np.float32)
    return 2 * side**3 / _usual(lambda: left @ right)


def _usual(work: Callable[[], object], times: int = 3) -> float:
    """Return the median of the seconds that work takes, after a first time that warms up."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)
