"""A Slurm of one node on this machine, for as long as a `with` block: munged, slurmctld and slurmd, run by root.

    python -m tests.slurm.one_node COMMAND …        run a command under it

Everything it writes is in a folder of its own, its ports are free ones, and its daemons are children of this process
that die with it, however it dies.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

COMMANDS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue")
START_TIMEOUT = 60
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={control_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MessageTimeout=60
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why there can be no Slurm here, None where there can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "only root can start one"


@contextmanager
def one_node() -> Iterator[dict[str, str]]:
    """Yield the environment in which Slurm's commands reach the node, which waits for jobs.

    Raises:
        RuntimeError: It doesn't come up; the message has its logs.
    """
    # A socket's path may have 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    environment = {
        **os.environ,
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _configure(folder)
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        daemons = (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
            ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
            ["slurmd", "-D", "-f", str(folder / "slurm.conf")],
        )
        for command, ready in zip(daemons, (folder / "munge.socket", None, None), strict=True):
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(_stop, process)
            if ready is not None:
                _until(ready.exists, f"{command[0]} made no {ready}", folder)
        _until(
            lambda: _said(environment, "sinfo", "--noheader", "--format=%T") == "idle", "the node isn't idle", folder
        )
        stack.callback(_cancel_all, environment)
        yield environment


def jobs(environment: dict[str, str], *fields: str) -> list[list[str]]:
    """Return what squeue tells of every job that has not ended: its number and name, or the fields named."""
    command = ["squeue", "--noheader", f"--format={' '.join(fields or ('%A', '%j'))}"]
    table = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return [line.split() for line in table.splitlines()]


def _configure(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    control_port, node_port = _free_ports(2)
    settings = {"host": host, "folder": folder, "control_port": control_port, "node_port": node_port}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cancel_all(environment: dict[str, str]) -> None:
    """Cancel every job and wait until its processes are gone, for which slurmd has to be there."""
    subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
    with suppress(RuntimeError, subprocess.CalledProcessError):
        _until(lambda: not jobs(environment), "jobs are left", Path("/nowhere"), 20)


def _said(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def _until(ready, otherwise: str, folder: Path, seconds: float = START_TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            logs = "".join(f"\n{path}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.log"))
            raise RuntimeError(f"Slurm didn't come up: {otherwise}.{logs}")
        time.sleep(0.05)


if __name__ == "__main__":
    with one_node() as found:
        sys.exit(subprocess.run(sys.argv[1:], env=found).returncode)
