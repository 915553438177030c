"""Small configurations, and a cluster of threads in the test's own process for what needs no separate workers."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

import influence.api
from influence.api import Run
from influence.artifacts.digest import sha256
from influence.config import RunConfig, parse_config
from influence.engine import cluster
from influence.stages import build as build_module

SETTINGS = {
    "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
    "store": {"rows_per_shard": 8, "codec": "float16"},
    "index": {"kind": "flat"},
    "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
}


@pytest.fixture
def configured(model_folder: Any, corpus_file: Path) -> Callable[..., RunConfig]:
    """`configured("data.limit=5", family="llama", data=path)`: a tiny run, with some settings changed."""

    def make(*overrides: str, family: str = "llama", data: Path = corpus_file, **sections: Any) -> RunConfig:
        model = {"path": str(model_folder(family)), "dtype": "float32"}
        if family == "bert":
            model["kind"] = "sequence_classification"
        settings = {"model": model, "data": {"path": str(data), "max_tokens": 64}, **SETTINGS, **sections}
        return parse_config(settings, overrides)

    return make


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """`written({"text": "a"}, …)`: a jsonl file of these records; `name="more"` gives a second one."""

    def write(*records: dict[str, Any], name: str = "rows") -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def thread_client() -> Iterator[Client]:
    """A cluster of one worker that lives in this process."""
    with (
        dask.config.set(cluster.QUIET),
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0", silence_logs=False
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def in_process(thread_client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Make builds use the cluster of threads."""

    @contextmanager
    def connect(*_: Any) -> Iterator[Client]:
        yield thread_client

    monkeypatch.setattr(build_module, "connect", connect)
    return thread_client


@pytest.fixture(scope="session")
def rebuild(thread_client: Client, model_folder: Any, corpus_file: Path) -> Callable[..., Run]:
    """`rebuild(folder, *overrides)`: build a tiny run of a Llama and the corpus there, on the cluster of threads."""
    found = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(corpus_file), "max_tokens": 64},
        **SETTINGS,
    }

    @contextmanager
    def connect(*_: Any) -> Iterator[Client]:
        yield thread_client

    def build(folder: Path, *overrides: str) -> Run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build_module, "connect", connect)
            return influence.api.build(parse_config(found, overrides), folder)

    return build


@pytest.fixture(scope="session")
def finished(rebuild: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    return rebuild(tmp_path_factory.mktemp("finished") / "run").path


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """`contents(run_dir)`: digests of a run's files, without its lock, its configuration, which names the workers, and
    that one's signature.

    Digests, so that a test that fails says which file differs.
    """

    def read(run_dir: Path) -> dict[str, str]:
        files = [path for path in sorted(run_dir.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
        return {str(path.relative_to(run_dir)): sha256(path) for path in files if path.stem != "config"}

    return read
