"""One build at a time writes into a folder of a bucket; a lock that was left behind is explained, or taken over."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading

import pytest

from influence.artifacts import lock
from influence.artifacts.holder import machine, process_began
from influence.artifacts.lock import LOCK, lock_folder, lock_holder
from influence.errors import RunLocked


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(ended.stdout)


def test_a_lock_is_there_while_it_is_held_and_says_who_holds_it(folder):
    assert lock_holder(folder) is None
    with lock_folder(folder):
        assert json.loads((folder / LOCK).read_bytes())["pid"] == os.getpid()
        assert f"process {os.getpid()} on {socket.gethostname()} (since " in str(lock_holder(folder))
    assert not (folder / LOCK).exists()


def test_a_second_build_is_refused_while_the_first_lives(folder):
    with lock_folder(folder):
        with pytest.raises(RunLocked, match=f"{folder} is being written by process {os.getpid()}"), lock_folder(folder):
            pass
        assert (folder / LOCK).exists()


def test_a_lock_goes_also_when_the_build_fails(folder):
    with pytest.raises(ZeroDivisionError), lock_folder(folder):
        raise ZeroDivisionError
    assert not (folder / LOCK).exists()


def test_a_lock_whose_holder_died_on_this_machine_is_taken_over(folder, abandoned, dead, caplog):
    abandoned(folder / LOCK, {"host": socket.gethostname(), "pid": dead, "machine": machine(), "began": "1"})
    assert lock_holder(folder) is None
    with caplog.at_level(logging.INFO), lock_folder(folder):
        assert json.loads((folder / LOCK).read_bytes())["pid"] == os.getpid()
    assert f"was left by process {dead}" in caplog.text
    assert not (folder / LOCK).exists()


def test_a_process_that_got_the_number_of_a_dead_one_holds_nothing(folder, abandoned):
    abandoned(folder / LOCK, {"host": "here", "pid": os.getpid(), "machine": machine(), "began": "1"})
    with lock_folder(folder):
        pass


def test_a_process_that_was_killed_and_not_yet_reaped_is_no_more():
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_began(ended.pid) is not None
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert process_began(ended.pid) is None
    ended.wait()


def test_a_lock_of_another_machine_is_explained_and_kept(folder, abandoned):
    abandoned(folder / LOCK, {"host": "node7", "pid": 12, "machine": "node7/other/1", "began": "1"})
    before = (folder / LOCK).read_bytes()
    with pytest.raises(RunLocked) as refused, lock_folder(folder):
        pass
    for said in ("process 12 on node7", "2026-01-05", "unknown whether", f"delete the object {folder / LOCK}"):
        assert said in str(refused.value)
    assert (folder / LOCK).read_bytes() == before
    assert "node7" in str(lock_holder(folder))


def test_what_is_no_lock_is_explained_and_kept(folder):
    (folder / LOCK).write_bytes(b"[]")
    with pytest.raises(RunLocked, match="isn't a lock that this software wrote"), lock_folder(folder):
        pass
    assert (folder / LOCK).read_bytes() == b"[]"


def test_a_lock_that_somebody_else_holds_by_now_is_left_to_them(folder, abandoned):
    with lock_folder(folder):
        abandoned(folder / LOCK, {"host": "node7", "pid": 12, "machine": "node7/other/1", "began": "1"})
    assert "node7" in str(lock_holder(folder))


def test_of_two_builds_that_find_a_dead_holder_one_takes_over(folder, abandoned, dead, monkeypatch):
    abandoned(folder / LOCK, {"host": "here", "pid": dead, "machine": machine(), "began": "1"})
    alive = {"host": "here", "pid": os.getpid(), "machine": machine(), "began": process_began(os.getpid())}
    lives = lock.lives

    def slowly(holder):
        found = lives(holder)
        # Between the look at the lock and its replacement, the other build takes it.
        if not found:
            abandoned(folder / LOCK, alive)
        return found

    monkeypatch.setattr(lock, "lives", slowly)
    with pytest.raises(RunLocked, match="is being written by"), lock_folder(folder):
        pass
    assert json.loads((folder / LOCK).read_bytes())["token"] == "theirs"


def test_of_builds_that_begin_at_the_same_moment_one_has_the_lock(folder):
    together, held, refused = threading.Barrier(6), [], []

    def begin():
        together.wait()
        try:
            with lock_folder(folder):
                held.append(1)
                together.wait()
        except RunLocked:
            refused.append(1)
            together.wait()

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)


def test_a_store_that_creates_what_is_there_is_named_in_a_warning(folder, monkeypatch, caplog):
    monkeypatch.setattr("influence.artifacts.path.ObjectPath.create", lambda path, content: path.write_bytes(content))
    with lock_folder(folder):
        assert "ignores If-None-Match" in caplog.text
        with pytest.raises(RunLocked), lock_folder(folder):
            pass
