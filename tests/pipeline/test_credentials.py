"""Who has not the keys of a build's cluster can't connect to it, and nothing of it listens beyond this machine."""

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import pytest
from distributed import LocalCluster
from failing_tasks import told_pid
from sockets import hosts_since, listening

from influence.cluster import ClusterSettings, TlsSettings
from influence.engine import cluster
from influence.engine.cluster import QUIET, connect
from influence.engine.credentials import draw_credentials
from influence.engine.key_folder import key_folder
from influence.engine.run_lock import held
from influence.engine.submit import run_tasks
from influence.errors import ClusterError

ATTEMPT = """
import json, os, sys
from distributed import Client
from distributed.security import Security
others = Security.temporary()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
outcomes = {}
for name, protocol, security in (("plain", "tcp", None), ("keys of its own", "tls", others)):
    try:
        with Client(f"{protocol}://{sys.argv[1]}", timeout=1, security=security) as client:
            outcomes[name] = client.submit(os.getuid).result()
    except Exception:
        outcomes[name] = "refused"
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def before():
    return listening()


@pytest.fixture(scope="module")
def local(before):
    """A cluster of one worker process, as a build starts it."""
    with connect(ClusterSettings(workers=1, device="cpu")) as client:
        yield client


@contextmanager
def someones_scheduler(workers: int = 0, **options) -> Iterator[str]:
    """Yield the address of a scheduler that no build started."""
    quiet = {"dashboard_address": "127.0.0.1:0", "silence_logs": False}
    with (
        dask.config.set(QUIET),
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, **quiet, **options) as found,
    ):
        yield str(found.scheduler_address)  # type: ignore[attr-defined]


def attempt(address: str) -> dict[str, object]:
    """Try to run a task as the user `nobody`, who knows the address."""
    command = [sys.executable, "-c", ATTEMPT, address.partition("://")[2]]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def from_environment(variables: dict[str, str]) -> dict[str, object]:
    """Return dask's settings as its own reader of environment variables understands them."""
    return dask.config.merge(dask.config.config, dask.config.collect_env(variables))


def test_a_local_cluster_listens_on_loopback_alone_and_shows_no_pages(local, before):
    assert list(run_tasks(local, told_pid, [0], str)) != [os.getpid()]
    assert hosts_since(before) == {"127.0.0.1"}
    ((address, worker),) = local.scheduler_info()["workers"].items()
    assert all(each.startswith("tls://127.0.0.1:") for each in (local.scheduler.address, address, worker["nanny"]))


def test_the_pages_about_tasks_and_logs_are_not_served_unless_they_are_asked_for(local):
    port = local.scheduler_info()["services"]["dashboard"]
    for page in ("info/main/workers.html", "info/logs.html", "metrics", "json/counts.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as another user")
def test_another_user_of_the_machine_runs_no_task_on_a_local_cluster(local):
    assert attempt(local.scheduler.address) == {"plain": "refused", "keys of its own": "refused"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as another user")
def test_the_same_attempt_runs_a_task_on_a_scheduler_without_keys():
    # Or else the attempt above might fail for another reason than the keys.
    with someones_scheduler(workers=1, protocol="tcp://") as address:
        assert attempt(address)["plain"] == os.getuid()


def test_a_worker_lets_nobody_without_the_keys_shake_hands(local):
    (worker,) = local.scheduler_info()["workers"]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = worker.removeprefix("tls://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain) as secured,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        secured.recv(1)


def test_keys_are_read_by_their_owner_alone_and_open_a_scheduler_of_ones_own(tmp_path):
    credentials = draw_credentials().write(tmp_path / "keys")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()}
    assert modes == {"certificate.pem": 0o600, "key.pem": 0o600}
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    tls = {"ca_file": credentials.certificate, "cert": credentials.certificate, "key": credentials.key}
    with someones_scheduler(protocol="tls://", security=credentials.security()) as address:
        settings = ClusterSettings(kind="address", address=address)
        with connect(ClusterSettings(kind="address", address=address, tls=TlsSettings.model_validate(tls))) as client:
            assert client.scheduler_info()["workers"] == {}
        with dask.config.set(from_environment(credentials.environment())), connect(settings) as client:
            assert client.scheduler_info()["workers"] == {}
        assert "cluster.tls (ca_file, cert, key; it is not set)" in unreachable(settings)


def test_a_key_file_that_is_not_there_is_named(tmp_path):
    tls = TlsSettings.model_validate({name: str(tmp_path / name) for name in ("ca_file", "cert", "key")})
    reason = unreachable(ClusterSettings(kind="address", address="tls://127.0.0.1:1", tls=tls))
    assert reason == f"cluster.tls.ca_file is {tmp_path}/ca_file, which can't be read: No such file or directory."


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("[::1]", False), ("192.0.2.7", True)]
)
def test_an_unencrypted_scheduler_beyond_this_machine_is_warned_of(host, warned, monkeypatch, caplog):
    monkeypatch.setattr(cluster, "REACH_TIMEOUT", 0.01)
    assert "can't be reached" in unreachable(ClusterSettings(kind="address", address=f"tcp://{host}:9"))
    assert ("is not encrypted: whoever reaches that port can run code" in caplog.text) == warned


def unreachable(settings: ClusterSettings) -> str:
    """Return why there is no connection."""
    with pytest.raises(ClusterError) as refused, connect(settings):
        pass
    return str(refused.value)


LEAVE_KEYS = """
import os, signal, sys
from pathlib import Path
from influence.engine.key_folder import key_folder

with key_folder(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_build_removes_the_keys_that_a_killed_one_left_and_no_others(tmp_path):
    logs = tmp_path / "run" / "jobs"
    logs.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", LEAVE_KEYS, str(logs)], check=False)
    (left,) = logs.glob(".keys-*/key.pem")
    with key_folder(logs) as running:
        assert not left.parent.exists()
        subprocess.run([sys.executable, "-c", LEAVE_KEYS, str(logs)], check=False)
        assert len(list(logs.glob(".keys-*/key.pem"))) == 2
        with held(tmp_path / "run"):
            assert [str(key) for key in logs.glob(".keys-*/key.pem")] == [running.key]
    assert not list(logs.glob(".keys-*"))
