"""Killed writers, full disks, two builds at once."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from influence.artifacts import partial
from influence.artifacts.lock import lock_folder
from influence.errors import Incomplete, RunLocked, StoreError
from influence.store import writer
from influence.store.reader import Store, missing_shards
from influence.store.writer import committed

STEPS = [
    "open vectors",
    "open metadata",
    "write parquet",
    "fsync vectors",
    "fsync metadata",
    "rename vectors",
    "rename metadata",
    "sync folder",
    "open record",
    "fsync record",
    "rename record",
]


class Killed(BaseException):
    """Stands for kill -9: no handler of ours may clean up after it."""


@pytest.fixture
def kill_at(monkeypatch):
    """Stop the writer at its n-th step and let nothing clean up, as kill -9 would."""

    def arm(step: int) -> None:
        done = iter(range(len(STEPS) + 1))

        def wrap(owner, name):
            real = getattr(owner, name)

            def counted(*args, **kwargs):
                if next(done) == step:
                    raise Killed
                return real(*args, **kwargs)

            monkeypatch.setattr(owner, name, counted)

        for owner, name in (
            (partial.PartialFile, "__init__"),
            (writer.pq, "write_table"),
            (partial.PartialFile, "finish"),
            (partial.PartialFile, "publish"),
            (writer, "sync_folder"),
        ):
            wrap(owner, name)
        monkeypatch.setattr(partial.PartialFile, "discard", lambda self: None)

    return arm


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_killed_between_any_two_steps_there_is_no_shard_and_the_next_build_gives_the_same_bytes(
    make_run, kill_at, monkeypatch, step
):
    whole, run = make_run("whole"), make_run()
    whole.write_all()
    run.manifest.save(run.folder)
    kill_at(step)
    with pytest.raises(Killed):
        run.write(0)
    monkeypatch.undo()
    assert committed(run.folder, run.manifest.shards[0], run.manifest.fingerprint) is None
    with pytest.raises(Incomplete):
        Store(run.folder)
    with lock_folder(run.folder):
        for span in run.manifest.shards:
            run.write(span.shard)
    written = run.bytes_on_disk()
    written.pop(".lock", None)
    assert written == whole.bytes_on_disk()


def test_the_steps_that_are_killed_are_all_the_steps_there_are(run, kill_at):
    kill_at(len(STEPS))
    run.write(0)
    assert run.files(0).record.exists()


def test_a_committed_shard_is_not_asked_for_again(run):
    run.manifest.save(run.folder)
    record = run.write(1)
    found = [committed(run.folder, span, run.manifest.fingerprint) for span in run.manifest.shards]
    assert found == [None, record, None]
    assert missing_shards(run.folder, run.manifest) == [0, 2]
    assert (record.tokens, record.zero_rows) == (6 + 7 + 8 + 9, (5,))
    assert record.size == run.files(1).vectors.stat().st_size + run.files(1).metadata.stat().st_size


@pytest.mark.parametrize("kind", ["vectors", "metadata", "record"])
def test_a_truncated_file_makes_its_shard_uncommitted_and_the_log_says_so(run, caplog, kind):
    run.write_all()
    path = getattr(run.files(1), kind)
    path.write_bytes(path.read_bytes()[:-3])
    assert committed(run.folder, run.manifest.shards[1], run.manifest.fingerprint) is None
    assert "shard-00001 is computed again" in caplog.text
    assert path.name in caplog.text


def test_a_shard_being_written_again_is_not_vouched_for_by_its_old_record(run, kill_at):
    run.write_all()
    kill_at(STEPS.index("rename metadata"))
    with pytest.raises(Killed):
        run.write(1)
    assert missing_shards(run.folder, run.manifest) == [1]


@pytest.mark.parametrize(("number", "whose"), [(errno.ENOSPC, "The disk"), (errno.EDQUOT, "Your quota")])
@pytest.mark.parametrize("nth", [0, 1, 3])
def test_a_full_disk_is_incomplete_and_leaves_nothing_half_written(run, monkeypatch, number, whose, nth):
    run.manifest.save(run.folder)
    real, calls = os.fsync, iter(range(10))

    def full(descriptor):
        if next(calls) == nth:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(partial.os, "fsync", full)
    with pytest.raises(
        Incomplete, match=rf"{whose} under .*rows is full: shard-00000.* needs [\d,]+ bytes, [\d,]+ bytes"
    ):
        run.write(0)
    monkeypatch.undo()
    assert not list(run.folder.rglob("*.partial"))
    assert missing_shards(run.folder, run.manifest) == [0, 1, 2]
    run.write(0)
    assert missing_shards(run.folder, run.manifest) == [1, 2]


ON_A_SMALL_DISK = """
    import sys, numpy as np
    from pathlib import Path
    from influence.axes import ModuleColumns
    from influence.errors import Incomplete
    from influence.store.codecs.float16 import Float16
    from influence.store.manifest import ShardRange
    from influence.store.shard import RowMeta
    from influence.store.writer import write_shard
    run, n = Path(sys.argv[1]) / "run", 512
    nothing, some, ones = [None] * n, ["x"] * n, np.ones(n, np.float32)
    codec = Float16((ModuleColumns(name="fc", outputs=8, inputs=8, q=1, p=1024, start=0, stop=1024),))
    meta = RowMeta(some, nothing, nothing, nothing, ones, ones, some)
    try:
        write_shard(run, ShardRange(shard=0, start=0, stop=n), codec, codec.zeros(n), ones, meta, "f")
    except Incomplete as error:
        print(error, "left:", [path.name for path in run.rglob("*.*")])
"""


def test_a_disk_that_is_really_full_is_named_with_the_bytes_needed_and_free(tmp_path):
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=512k tmpfs {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*namespace, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine allows no private mount")
    # The mount is private to the child: it ends with it.
    script = f'{mount} && exec {sys.executable} -c "$0" {tmp_path}'
    child = subprocess.run(
        [*namespace, "sh", "-c", script, textwrap.dedent(ON_A_SMALL_DISK)], capture_output=True, text=True
    )
    assert "The disk under" in child.stdout, child.stderr
    assert "shard-00000 needs 1,0" in child.stdout
    assert "left: []" in child.stdout


def test_a_folder_that_can_not_be_made_is_named(run):
    run.folder.write_text("a file")
    with pytest.raises(StoreError, match=r"can't be written into .*run"):
        run.write(0)
    with pytest.raises(StoreError, match=r"run is a file, expected a directory"), lock_folder(run.folder):
        pass
    run.folder.unlink()
    os.mkfifo(run.folder)
    with pytest.raises(StoreError, match=r"run is a FIFO, expected a directory"), lock_folder(run.folder):
        pass


HOLD = """
    import sys
    from pathlib import Path
    from influence.artifacts.lock import lock_folder
    with lock_folder(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


def test_a_second_process_is_refused_and_told_who_holds_the_run(run, holder):
    with (
        pytest.raises(RunLocked, match=rf"being written by process {holder.pid} on .* two builds can't share"),
        lock_folder(run.folder),
    ):
        pass
    assert holder.poll() is None


def test_the_lock_of_a_killed_process_is_free_and_its_half_files_go(run, holder):
    (run.folder / "rows").mkdir()
    half = run.folder / "rows" / "shard-00000.safetensors.17-0f.partial"
    half.write_bytes(b"half")
    holder.kill()
    holder.wait()
    with lock_folder(run.folder):
        assert not half.exists()


def test_a_lock_is_given_back(run):
    for _ in range(2):
        with lock_folder(run.folder), pytest.raises(RunLocked), lock_folder(run.folder):
            pass


def test_two_attempts_at_one_shard_at_once_end_in_one_whole_shard(run, monkeypatch):
    run.manifest.save(run.folder)
    real = writer.pq.write_table
    attempts = iter([lambda: run.write(0), lambda: None])

    def meanwhile(*args, **kwargs):
        next(attempts, lambda: None)()
        real(*args, **kwargs)

    monkeypatch.setattr(writer.pq, "write_table", meanwhile)
    run.write(0)
    run.write(1)
    run.write(2)
    Store(run.folder).verify()


@pytest.mark.parametrize("kind", ["FIFO", "directory", "link to a FIFO"])
def test_a_file_takes_the_place_of_no_fifo_or_device_nor_what_a_link_leads_to(tmp_path, kind):
    out = tmp_path / "out.json"
    if kind == "directory":
        out.mkdir()
    else:
        os.mkfifo(tmp_path / "fifo" if kind.startswith("link") else out)
    if kind.startswith("link"):
        out.symlink_to(tmp_path / "fifo")
    with pytest.raises(
        StoreError, match=rf"out\.json is a {kind.split()[-1]}, and a finished file would take its place"
    ):
        partial.write_whole(out, b"{}")
    assert not out.is_file()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "/dev/not there", "/proc/self/fd/1", "/dev/fd/1"])
def test_no_file_is_put_among_the_devices_or_the_files_of_a_process(name):
    with pytest.raises(StoreError, match="a finished file would take its place"):
        partial.check_replaceable(Path(name))


def test_a_file_takes_the_place_of_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    partial.write_whole(tmp_path / "out", b"x")
    assert (tmp_path / "out").read_bytes() == b"x"
    assert not (tmp_path / "gone").exists()


def test_a_name_of_255_bytes_can_be_written_and_cleared_of_what_was_left_beside_it(tmp_path):
    path = tmp_path / ("ü" * 125 + ".json")
    killed = partial.PartialFile(path)
    killed.write(b"half")
    partial.remove_half_written(path)
    assert list(tmp_path.iterdir()) == []
    partial.write_whole(path, b"x")
    assert path.read_bytes() == b"x"
