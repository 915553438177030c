"""A cluster of threads in the test's own process, for builds."""

from contextlib import contextmanager

import dask
import pytest
from distributed import Client, LocalCluster

from influence.engine.cluster import QUIET
from influence.stages import build as build_module


@pytest.fixture(scope="module")
def client():
    with (
        dask.config.set(QUIET),
        LocalCluster(
            1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", silence_logs=False
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.MonkeyPatch.context() as patch,
    ):

        @contextmanager
        def connect(*_):
            yield client

        patch.setattr(build_module, "connect", connect)
        yield client
