"""The graph of near rows as checks read it: in blocks, by row, and told how it was found."""

import shutil

import numpy as np
import pytest
from pydantic import ValidationError

import influence.api as runs
from influence.config import parse_config
from influence.issues.neighbors import NOBODY, NeighbourSettings, neighbour_graph
from influence.neighbors import plan as neighbour_plan


@pytest.fixture(scope="module")
def built(model_folder, corpus_file, tmp_path_factory, client):
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(corpus_file), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 4, "q": 4}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path_factory.mktemp("runs") / "x")


@pytest.fixture
def copied(built, tmp_path):
    """A run that may be written into."""
    with runs.open(shutil.copytree(built.path, tmp_path / "run")) as run:
        yield run


def test_blocks_are_rows_in_order_and_any_rows_come_back_in_the_order_asked(copied):
    graph = neighbour_graph(copied, NeighbourSettings(k=4))
    blocks = list(graph.blocks(7))
    assert [first for first, _ in blocks] == list(range(0, 40, 7))
    whole = graph.of(np.arange(40))
    np.testing.assert_array_equal(np.concatenate([near.alike for _, near in blocks]), whole.alike)
    some = graph.of(np.array([9, 3, 9]))
    np.testing.assert_array_equal(some.opposed_cosines, whole.opposed_cosines[[9, 3, 9]])
    assert (graph.rows, graph.k, whole.alike.shape) == (40, 4, (40, 4))


def test_a_graph_that_is_there_is_read_and_not_found_again(copied, monkeypatch):
    neighbour_graph(copied, NeighbourSettings(k=4))
    monkeypatch.setattr("influence.neighbors.stage.search", None)
    steps = []
    graph = neighbour_graph(copied, NeighbourSettings(k=4), progress=steps.append)
    assert graph.of(np.array([0])).alike.shape == (1, 4)
    assert steps == []


def test_an_approximate_graph_says_so_with_its_measured_recall(copied, monkeypatch):
    monkeypatch.setattr(neighbour_plan, "CELL_ROWS", 4)
    assert "exact search over all pairs" in neighbour_graph(copied, NeighbourSettings(k=4)).summary
    graph = neighbour_graph(copied, NeighbourSettings(k=4, kind="approximate", compared=12))
    near = graph.of(np.arange(40))
    exact = neighbour_graph(copied, NeighbourSettings(k=4)).of(np.arange(40))
    shares = [
        np.mean([np.isin(mine, true).mean() for mine, true in zip(found, right, strict=True)])
        for found, right in ((near.alike_cosines, exact.alike_cosines), (near.opposed_cosines, exact.opposed_cosines))
    ]
    assert f"{shares[0]:.1%} of the true nearest rows and {shares[1]:.1%} of the most opposed ones" in graph.summary
    assert "approximately: among about 12 rows" in graph.summary
    assert (near.alike != NOBODY).any()


def test_auto_is_exact_up_to_a_limit_and_where_every_row_would_be_compared_anyway():
    assert NeighbourSettings().compared_of(50_000) is None
    assert NeighbourSettings().compared_of(50_001) == 25_000
    assert NeighbourSettings(exact_rows=10).compared_of(25_000) is None
    assert NeighbourSettings(kind="exact").compared_of(10**8) is None
    assert NeighbourSettings(kind="approximate", compared=100).compared_of(101) == 100


@pytest.mark.parametrize("wrong", [{"kind": "fast"}, {"k": 0}, {"compared": 1}, {"cells": 4}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValidationError):
        NeighbourSettings(**wrong)
