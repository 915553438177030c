"""Lost workers are replaced, stumbling disks are tried again, and our own errors arrive as they are."""

import logging
import os
import signal
from types import SimpleNamespace

import dask
import pytest
from distributed import Client, LocalCluster
from failing_tasks import always_dies, dies_once, given_up_twice, never_readable, stumbles_once, wrong

from influence.config import ClusterSettings
from influence.engine import adapt, cluster, local, submit
from influence.engine.cluster import connect, kept_cluster, list_workers, worker_count, workers_wanted
from influence.engine.submit import run_tasks
from influence.engine.workforce import Workforce, introduce, workforce_of
from influence.errors import ClusterError, DataError, Incomplete, MissingExtra
from tests.cli.conftest import until

CUDA = ClusterSettings.model_validate({"kind": "cuda"})


def run(client, function, *paths):
    return list(run_tasks(client, function, paths, lambda path: f"the task of {path.name}"))


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_a_deadly_task_given_up_by_name(tmp_path):
    # Dask drops a worker for good that is away so long after a death, as one is that died again: 15 s, but for this.
    hasty = dask.config.set({"distributed.deploy.lost-worker-timeout": "50ms"})
    with hasty, connect(ClusterSettings(workers=1, device="cpu")) as client:
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


def test_a_task_that_the_scheduler_gives_up_is_tried_in_more_rounds_where_workers_come_and_go(thread_client, tmp_path):
    introduce(thread_client, Workforce(rounds=3))
    try:
        assert run(thread_client, given_up_twice, tmp_path / "a") == ["done"]
        introduce(thread_client, Workforce(rounds=2))
        with pytest.raises(ClusterError, match=r"took up the task of b died.*cluster\.job\.memory"):
            run(thread_client, given_up_twice, tmp_path / "b")
    finally:
        introduce(thread_client, Workforce())


@pytest.fixture
def elastic():
    """A cluster of threads that has no workers yet, and a client to whom it is somebody else's."""
    with (
        dask.config.set(cluster.QUIET),
        LocalCluster(
            n_workers=0,
            threads_per_worker=2,
            processes=False,
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
            silence_logs=False,
        ) as somebodys,
        connect(ClusterSettings(kind="address", address=somebodys.scheduler_address)) as client,
    ):
        yield somebodys, client


def test_tasks_wait_for_workers_that_come_late_and_are_all_gone_for_a_while(elastic, monkeypatch, caplog):
    monkeypatch.setattr(submit, "FIRST_WORD", 0.0)
    monkeypatch.setattr(submit, "LOOK_EVERY", 0.05)
    caplog.set_level(logging.INFO, "influence")
    somebodys, client = elastic
    workforce = workforce_of(client)
    told = workforce.absent
    workforce.absent = lambda: (somebodys.scale(1), told())[1]
    results = []
    for result in run_tasks(client, abs, range(20), str):
        results.append(result)
        if len(results) == 5:
            somebodys.scale(0)
            until(lambda: not list_workers(client))
    assert sorted(results) == list(range(20))
    waiting = [message for message in caplog.messages if message.startswith("No worker for")]
    assert len(waiting) >= 2
    assert f"Start some: dask worker {somebodys.scheduler_address}" in waiting[0]


def test_a_result_that_is_lost_with_its_worker_before_it_was_fetched_is_waited_for_with_open_eyes(elastic, monkeypatch):
    for name, seconds in (("FIRST_WORD", 0.05), ("LOOK_EVERY", 0.05), ("FETCH", 0.5)):
        monkeypatch.setattr(submit, name, seconds)
    somebodys, client = elastic
    somebodys.scale(1)
    until(lambda: list_workers(client))
    workforce, next_finished = workforce_of(client), submit._Crew.next_finished
    told, losses = workforce.absent, []
    workforce.absent = lambda: (somebodys.scale(1), told())[1]

    def lost_on_the_way(crew):
        future = next_finished(crew)
        if not losses:
            losses.append(future)
            somebodys.scale(0)
            until(lambda: not list_workers(client))
        return future

    monkeypatch.setattr(submit._Crew, "next_finished", lost_on_the_way)
    assert sorted(run_tasks(client, abs, range(5), str)) == list(range(5))
    assert losses


def test_more_tasks_are_handed_out_as_more_workers_come(elastic, monkeypatch):
    monkeypatch.setattr(submit, "LOOK_EVERY", 0.0)
    somebodys, client = elastic
    somebodys.scale(1)
    until(lambda: len(list_workers(client)) == 1)
    taken = []

    def tasks():
        for number in range(60):
            taken.append(number)
            yield number

    ahead = []
    for _ in run_tasks(client, abs, tasks(), str):
        ahead.append(len(taken) - len(ahead))
        if len(ahead) == 5:
            somebodys.scale(3)
            until(lambda: len(list_workers(client)) == 3)
    assert max(ahead[:5]) <= 5
    assert 12 <= max(ahead) <= 13


def test_a_scheduler_that_is_gone_leaves_an_incomplete_build(elastic):
    somebodys, client = elastic
    somebodys.scale(1)
    results = run_tasks(client, abs, range(100), str)
    assert next(results) in range(100)
    somebodys.close()
    with pytest.raises(Incomplete, match=r"connection to the scheduler is lost.*run the same build again"):
        list(results)


def test_what_ended_the_hope_for_workers_reaches_the_caller(elastic, monkeypatch):
    monkeypatch.setattr(submit, "LOOK_EVERY", 0.05)
    _, client = elastic
    workforce_of(client).absent = lambda: pytest.fail("it was to be told of the failure at once")
    tasks = run_tasks(client, abs, [1], str)
    workforce_of(client).failure = ClusterError("the queue is closed")
    with pytest.raises(ClusterError, match="the queue is closed"):
        next(tasks)


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
    assert worker_count(ClusterSettings(threads_per_worker=1024), "cpu") == 1
    assert worker_count(ClusterSettings(workers=5), "cpu", tasks=2) == 2
    assert workers_wanted(ClusterSettings(kind="slurm"), 10) == 1
    adapting = ClusterSettings.model_validate({"kind": "pbs", "adapt": {"max": 7}})
    assert (workers_wanted(adapting, 10), workers_wanted(adapting, 3)) == (7, 3)
    assert workers_wanted(ClusterSettings(kind="address", address="tcp://host:1"), 10) is None


def test_several_gpus_without_dask_cuda_name_the_extra(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"influence\[gpu\]"), connect(ClusterSettings()):
        pass


def test_cuda_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterError, match="no CUDA device"), connect(ClusterSettings(device="cuda")):
        pass
    with pytest.raises(ClusterError, match=r"cluster\.kind is cuda.*Set it to local"), connect(CUDA):
        pass


@pytest.mark.slow
def test_local_workers_come_with_the_tasks_and_leave_after_them(monkeypatch):
    monkeypatch.setattr(adapt, "EVERY", "50ms")
    monkeypatch.setattr(adapt, "PATIENCE", 3)
    settings = ClusterSettings.model_validate({"device": "cpu", "adapt": {"min": 0, "max": 2}})
    with connect(settings, 100) as client:
        assert list_workers(client) == []
        assert sorted(run_tasks(client, abs, range(20), str)) == list(range(20))
        until(lambda: list_workers(client) == [])


def test_a_dashboard_is_told_of_where_there_is_one(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "influence")
    page = SimpleNamespace(dashboard_link="http://127.0.0.1:1/status")
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    cluster._tell_dashboard(page)
    assert caplog.messages == []
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    cluster._tell_dashboard(page)
    assert caplog.messages == ["Dashboard: http://127.0.0.1:1/status"]


def test_a_kept_cluster_is_one_for_stages_alike_and_grows_where_more_workers_are_wanted():
    one = ClusterSettings(workers=2, device="cpu")
    with kept_cluster():
        with connect(one, 1) as first:
            assert first.submit(abs, -1).result() == 1
        with connect(one, 1) as again:
            assert again is first
            assert len(list_workers(again)) == 1
        with connect(one, 5) as more:
            assert more is not first
            assert first.status == "closed"
            assert len(list_workers(more)) == 2
        with connect(one, 1) as fewer:
            assert fewer is more
    assert more.status == "closed"
    with connect(one, 1) as own:
        assert own is not more
    assert own.status == "closed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_a_client_connects_waits_until_it_can_be_closed_and_closes_it(number, monkeypatch):
    happened = []

    class Connecting:
        def __init__(self, *_, **__):
            signal.raise_signal(number)
            happened.append("connected")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            happened.append("closed")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "Client", Connecting)
    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), connect(ClusterSettings(kind="address", address="tcp://one:1")):
            pass
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert happened == ["connected", "closed"]


def test_workers_that_do_not_close_in_order_cost_no_result_and_hide_no_error(monkeypatch, caplog):
    close, errors = Client.close, [TimeoutError(), OSError("the worker is gone"), AssertionError("still starting")]

    def closes_and_fails(self, *given, **named):
        close(self, *given, **named)
        raise error

    with (
        dask.config.set(cluster.QUIET),
        LocalCluster(n_workers=1, processes=False, protocol="tcp://", dashboard_address=None) as somebodys,
    ):
        settings = ClusterSettings(kind="address", address=somebodys.scheduler_address)
        monkeypatch.setattr(Client, "close", closes_and_fails)
        for error in errors:
            with connect(settings) as client:
                found = client.submit(max, 2, 3).result()
            assert found == 3
            assert f"did not close in order ({type(error).__name__}" in caplog.text
        with pytest.raises(DataError, match="row 7"), connect(settings):
            raise DataError("row 7 is no text")
        with pytest.raises(KeyboardInterrupt), connect(settings):
            raise KeyboardInterrupt
        monkeypatch.undo()
