"""Whatever has the name of a run's file and is no regular file is refused before it is opened: a FIFO would wait."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import influence.api as runs
from index.errors import VectorIndexError
from influence.artifacts.lock import lock_folder
from influence.artifacts.regular import check_regular, read_regular
from influence.errors import InfluenceError, StoreError
from influence.stages.status import status
from influence.store.manifest import MANIFEST


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """End a test that waits for a writer that never comes."""

    def late(*_: object) -> None:
        raise AssertionError("it waits for what is no regular file")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def one_of_each_kind(run: Path) -> list[Path]:
    """The first file of each folder and suffix."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return list({(path.parent, path.suffix, path.stem.strip("0123456789-")): path for path in files[::-1]}.values())


def use(run_dir: Path) -> None:
    """Read all that a run has."""
    status(run_dir)
    with runs.open(run_dir) as run:
        run.meta([0])
        run.vectors([0])
        run.query(completion="The river was named", k=1)


def refusal(run_dir: Path) -> str:
    """What is said where a run can't be used; nothing where it can."""
    try:
        use(run_dir)
    except (InfluenceError, VectorIndexError) as error:
        return str(error)
    return ""


def test_a_fifo_in_place_of_any_file_of_a_run_is_refused_or_does_no_harm(finished_copy, tmp_path):
    kinds = one_of_each_kind(finished_copy)
    assert {path.suffix for path in kinds} >= {".json", ".yaml", ".sig", ".safetensors", ".parquet", ".faiss"}
    refused: set[str] = set()
    for path in kinds:
        aside = shutil.move(path, tmp_path / "aside")
        os.mkfifo(path)
        refused |= {path.suffix} if refusal(finished_copy) else set()
        path.unlink()
        shutil.move(aside, path)
    assert refused >= {".json", ".yaml", ".safetensors", ".parquet", ".faiss"}
    use(finished_copy)


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a directory", "symbolic links"])
def test_a_manifest_that_is_no_file_is_named_for_what_it_is(kind, finished_copy):
    path = finished_copy / MANIFEST
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        match kind:
            case "a FIFO":
                os.mkfifo(path)
            case "a socket":
                listening.bind(str(path))
            case "a device":
                path.symlink_to("/dev/zero")
            case "a directory":
                path.mkdir()
            case _:
                path.symlink_to(path)
        for look in (runs.open, status):
            with pytest.raises(StoreError, match=rf"manifest\.json .*{kind}"):
                look(finished_copy)


def test_a_file_that_may_not_be_read_says_whose_it_is_and_what_to_do():
    ours = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / MANIFEST
        path.write_bytes(b"{}")
        path.chmod(0o600 if ours == 0 else 0)
        if ours == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=r"can't be read: Permission denied\. It is owned by uid \d+, mode 0"):
                read_regular(path)
        finally:
            os.seteuid(ours)


def test_a_fifo_in_place_of_a_lock_keeps_no_build_waiting(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(StoreError, match="is a FIFO"), lock_folder(tmp_path):
        pass


def test_a_link_to_a_regular_file_is_one(tmp_path):
    (tmp_path / "file").write_bytes(b"whole")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    check_regular(tmp_path / "link")
    assert read_regular(tmp_path / "link") == b"whole"
