"""Rows made up like gradients, small, and indexes of them."""

from dataclasses import replace

import numpy as np

from index.approximate.merge import merge_parts, open_index, open_parts
from index.approximate.parts import build_part, part_ranges, save_trained
from index.approximate.train import sample_rows, train
from index.factory import plan_factory
from index.settings import IndexSettings


def gradients(count, dims, seed=0, sigma=0.8, clusters=12):
    """Clustered directions, log-normal lengths; two zero rows, and a row with copies."""
    shared, random = np.random.default_rng(99), np.random.default_rng(seed)
    centres = shared.standard_normal((clusters, dims))
    rows = 0.6 * centres[random.integers(0, clusters, count)] + 0.4 * random.standard_normal((count, dims))
    rows *= np.exp(sigma * random.standard_normal((count, 1))) / np.linalg.norm(rows, axis=1, keepdims=True)
    if count > 60:
        rows[[3, 17]] = 0
        rows[[40, 50, 60]] = rows[20]
    return rows.astype("f4")


def blocks_of(rows, first=0, stop=None, size=64):
    stop = len(rows) if stop is None else stop
    for start in range(first, stop, size):
        yield start, rows[start : min(stop, start + size)]


def planned(rows, part_rows=None, **settings):
    plan = plan_factory(IndexSettings(**settings), *rows.shape)
    return plan if part_rows is None else replace(plan, part_rows=part_rows)


def built_parts(directory, rows, plan, size=64, numbers=None):
    wanted = sample_rows(len(rows), plan.sample)
    save_trained(train(plan, blocks_of(rows[wanted], size=size), *rows.shape), directory, "f")
    for number, (first, stop) in enumerate(part_ranges(plan, len(rows))):
        if numbers is None or number in numbers:
            build_part(directory, "f", number, blocks_of(rows, first, stop, size))


def merged(directory, rows, part_rows=None, **settings):
    built_parts(directory, rows, planned(rows, part_rows, **settings))
    merge_parts(directory, "f")
    return open_index(directory, "f")


def unmerged(directory, rows, part_rows, **settings):
    built_parts(directory, rows, planned(rows, part_rows, **settings))
    return open_parts(directory, "f")
