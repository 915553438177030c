"""A real S3-compatible server on this machine, moto's, with a bucket; requests go over HTTP as they do to any store."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from influence.artifacts.path import ObjectPath
from influence.artifacts.place import run_path

BUCKET = "lab"
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The endpoint of a server."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="module", autouse=True)
def environment(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Credentials, endpoint and a cache of their own, here and in every subprocess; and the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server}.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        within(run_path(f"s3://{BUCKET}/any")).fs.call_s3("create_bucket", Bucket=BUCKET)
        yield


def within(path: Path) -> ObjectPath:
    """A path that leads into the bucket, as what it is."""
    assert isinstance(path, ObjectPath)
    return path


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> ObjectPath:
    """A folder in the bucket for one test."""
    return within(run_path(f"s3://{BUCKET}/{request.node.name}"))


@pytest.fixture
def flip() -> Callable[[ObjectPath, int], None]:
    """Change one bit of an object."""

    def change(path: ObjectPath, offset: int) -> None:
        content = bytearray(path.read_bytes())
        content[offset] ^= 0x10
        path.write_bytes(bytes(content))

    return change


@pytest.fixture
def abandoned() -> Callable[[ObjectPath, dict], None]:
    """Leave a lock as another process would."""

    def leave(lock: ObjectPath, holder: dict) -> None:
        lock.write_bytes(json.dumps({"since": "2026-01-05T07:00:00+00:00", "token": "theirs", **holder}).encode())

    return leave
