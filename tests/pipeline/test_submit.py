"""Lost workers are replaced, stumbling disks are tried again, and our own errors arrive as they are."""

import os

import pytest
from failing_tasks import always_dies, dies_once, never_readable, stumbles_once, wrong

from influence.config import ClusterSettings
from influence.errors import ClusterError, DataError, MissingExtra
from influence.pipeline import cluster
from influence.pipeline.cluster import connect, worker_count
from influence.pipeline.submit import run_tasks


def run(client, function, *paths):
    return list(run_tasks(client, function, paths, lambda path: f"the task of {path.name}"))


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_a_deadly_task_given_up_by_name(tmp_path):
    with connect(ClusterSettings(workers=1, device="cpu")) as client:
        (survivor,) = run(client, dies_once, tmp_path / "once")
        assert survivor != os.getpid()
        with pytest.raises(ClusterError, match="The workers that took up the task of always died"):
            run(client, always_dies, tmp_path / "always")
    assert (tmp_path / "always").stat().st_size == cluster.ALLOWED_FAILURES + 1


def test_an_error_of_the_file_system_is_tried_again_but_not_for_ever(thread_client, tmp_path):
    assert run(thread_client, stumbles_once, tmp_path / "a") == ["done"]
    with pytest.raises(OSError, match="stale"):
        run(thread_client, never_readable, tmp_path / "b")
    assert (tmp_path / "b").stat().st_size == 3


def test_an_error_of_ours_is_not_tried_again(thread_client, tmp_path):
    with pytest.raises(DataError, match="row 7 is not a row"):
        run(thread_client, wrong, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size == 1


def test_tasks_are_taken_only_as_there_is_room_for_them(thread_client):
    taken = []

    def tasks():
        for number in range(50):
            taken.append(number)
            yield number

    finished = 0
    for _ in run_tasks(thread_client, abs, tasks(), str):
        finished += 1
        assert len(taken) <= finished + 4
    assert finished == 50


def test_a_scheduler_out_of_reach_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "REACH_TIMEOUT", 0.2)
    with (
        pytest.raises(ClusterError, match=r"tcp://127\.0\.0\.1:9 can't be reached"),
        connect(ClusterSettings(kind="address", address="tcp://127.0.0.1:9")),
    ):
        pass


def test_workers_are_as_set_or_one_a_core_or_as_many_as_there_are_tasks():
    cores = len(os.sched_getaffinity(0))
    assert worker_count(ClusterSettings(workers=5), "cpu") == 5
    assert worker_count(ClusterSettings(), "cpu") == cores
    assert worker_count(ClusterSettings(threads_per_worker=10_000), "cpu") == 1
    assert worker_count(ClusterSettings(workers=5), "cpu", tasks=2) == 2


def test_several_gpus_without_dask_cuda_name_the_extra(monkeypatch):
    monkeypatch.setattr(cluster.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"influence\[gpu\]"), connect(ClusterSettings()):
        pass


def test_cuda_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(cluster.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterError, match="no CUDA device"), connect(ClusterSettings(device="cuda")):
        pass
