"""Near rows of a run in a bucket are those of the run on a disk, and are kept beside it."""

from contextlib import contextmanager

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

import influence.api as runs
from influence.config import parse_config
from influence.engine.cluster import QUIET
from influence.errors import QueryError
from influence.issues.neighbors import NeighbourSettings, neighbour_graph
from influence.neighbors import plan as neighbour_plan
from influence.stages import build as build_module


@pytest.fixture(scope="module")
def built(model_folder, corpus_file, tmp_path_factory):
    """The same run on a disk and in a bucket."""
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(corpus_file), "max_tokens": 64},
        "recipe": {"name": "graddot", "projection": {"p": 4, "q": 4}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    quiet = {"threads_per_worker": 2, "dashboard_address": "127.0.0.1:0", "silence_logs": False}
    with (
        dask.config.set(QUIET),
        LocalCluster(n_workers=1, processes=False, **quiet) as local,
        Client(local, set_as_default=False) as client,
        pytest.MonkeyPatch.context() as patch,
    ):

        @contextmanager
        def connect(*_):
            yield client

        patch.setattr(build_module, "connect", connect)
        config = parse_config(settings)
        yield runs.build(config, tmp_path_factory.mktemp("runs") / "x"), runs.build(config, "s3://lab/neighbours")


def test_neighbours_in_a_bucket_are_those_on_a_disk_and_are_found_once(built, monkeypatch):
    monkeypatch.setattr(neighbour_plan, "batch_of", lambda dims: 16)
    here, there = built
    graph = neighbour_graph(there, NeighbourSettings(k=4))
    monkeypatch.setattr("influence.neighbors.stage.search", None)
    graph = neighbour_graph(there, NeighbourSettings(k=4))
    monkeypatch.undo()
    monkeypatch.setattr(neighbour_plan, "batch_of", lambda dims: 16)
    found, expected = (one.of(np.arange(40)) for one in (graph, neighbour_graph(here, NeighbourSettings(k=4))))
    for name in ("alike", "alike_cosines", "opposed", "opposed_cosines"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_an_approximate_graph_in_a_bucket_is_refused_with_what_works(built):
    with pytest.raises(QueryError, match=r"in a bucket.*wants a disk.*neighbours\.kind=exact"):
        neighbour_graph(built[1], NeighbourSettings(k=4, kind="approximate", compared=8))
