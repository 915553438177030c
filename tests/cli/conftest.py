"""The command line, called in the test's own process, over a tiny run that is built once a module."""

import errno
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from distributed import Client, LocalCluster

import influence.api as runs
import influence.estimate.forecast as forecast_module
from influence.artifacts.partial import PartialFile
from influence.cli.main import main
from influence.engine.cluster import QUIET
from influence.stages import build as build_module

PROMPT, COMPLETION = "The river was named after", " a cartographer who never saw it."
ASKED = ("--prompt", PROMPT, "--completion", COMPLETION)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """Standard error on one line, as wide as it takes, without the frames that usage errors stand in."""
        return " ".join(self.err.replace("│", " ").split())


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the developer's terminal sets stays out of the tables."""
    for name in ("COLUMNS", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Ended]:
    """`cli("query", run, "-k", 3)`: run a command and return its exit code, standard output and standard error."""

    def call(*argv: Any) -> Ended:
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in argv])
        printed = capsysbinary.readouterr()
        return Ended(int(ended.value.code or 0), printed.out.decode(), printed.err.decode())

    return call


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of one worker that lives in this process, no longer than its module's tests."""
    with (
        dask.config.set(QUIET),
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", silence_logs=False
        ) as local,
        Client(local, set_as_default=False) as found,
    ):
        yield found


@contextmanager
def connected_to(client: Client) -> Iterator[None]:
    """Let builds and plans use a cluster that is there, so that no test waits for processes to start."""

    @contextmanager
    def connect(*_: Any) -> Iterator[Client]:
        yield client

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "connect", connect)
        patch.setattr(forecast_module, "connect", connect)
        yield


@pytest.fixture
def in_process(client: Client) -> Iterator[None]:
    """Builds and plans use the cluster in this process."""
    with connected_to(client):
        yield


def settings(model: Path, data: Path, kind: str = "causal_lm") -> dict[str, Any]:
    """The sections of a tiny run file."""
    return {
        "model": {"path": str(model), "kind": kind, "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 4, "q": 4}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "index": {"kind": "flat"},
        "cluster": {"token_budget": 256, "workers": 1, "device": "cpu"},
    }


@pytest.fixture
def run_file(model_folder: Any, corpus_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """`run_file(data=path, model=folder)`: a YAML file in `tmp_path`; by default of the Llama and the corpus."""

    def write(data: Path = corpus_file, model: Path | None = None, kind: str = "causal_lm", **sections: Any) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**settings(model or model_folder("llama"), data, kind), **sections}))
        return path

    return write


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """`written({"text": "a"}, …)`, or bytes: a jsonl file."""

    def write(*records: dict[str, Any] | bytes) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(
            b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in records)
        )
        return path

    return write


@pytest.fixture(scope="module")
def built(
    model_folder: Any, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory, client: Client, own_cache: Path
) -> Path:
    """A finished run of forty rows, not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "run.yaml").write_text(yaml.safe_dump(settings(model_folder("llama"), corpus_file)))
    with connected_to(client):
        runs.build(folder / "run.yaml", folder / "run")
    return folder / "run"


@pytest.fixture
def run_copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make standard output pass for a terminal from now on."""
    import sys

    return lambda: monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """A folder on a disk of 64 kB, and how to make room; where none may be mounted, a writer that finds one full."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(*options: str) -> bool:
        return subprocess.run(["mount", *options, folder], capture_output=True).returncode == 0

    if shutil.which("mount") and mount("-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        yield folder, lambda: mount("-o", "remount,size=16m")
        subprocess.run(["umount", folder], check=True)
        return
    write = PartialFile.write

    def full(self: PartialFile, data: Any) -> int:
        if self.size + len(data) > 8_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(PartialFile, "write", full)
    yield folder, lambda: monkeypatch.setattr(PartialFile, "write", write)


def clean(*folders: Path) -> bool:
    """Whether nothing half-written is left below these folders."""
    return not [path for folder in folders for path in folder.rglob("*.partial")]


def until(ready: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)
