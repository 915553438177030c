"""What a job of a batch queue is: its class in dask-jobqueue, its header, its environment and its own list of jobs.

The workers of a job compute with the threads that the settings say and find the environment of local ones, so that a
run's bytes are the same wherever it is built.
"""

import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Any

import dask
from distributed.utils import get_ip, get_ip_interface

from influence.cluster import ClusterSettings, JobSettings
from influence.errors import ClusterError, MissingExtra

NAME = "influence"
SLOT_MEMORY = "1GB"
"""Told to dask-jobqueue where the queue's own default holds; the line of the header that says it is left out."""
HOST = "INFLUENCE_HOST"
LOCAL_ADDRESS = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 1)); "
    "print(s.getsockname()[0])"
)
"""What a job runs to learn the address from which it reaches the coordinator; nothing is sent."""
TAIL = 20
"""Lines of a job's log that are shown when it came to nothing."""


@dataclass(frozen=True)
class Queue:
    """A kind of batch queue.

    Attributes:
        cluster: Its class in dask-jobqueue.
        listing: The command that lists a user's jobs that have not ended, one a line, its number first.
        memory_line: What marks the header's line that asks for memory.
        walltime_line: What marks the line that limits the time.
    """

    cluster: str
    listing: tuple[str, ...]
    memory_line: str
    walltime_line: str


QUEUES: Mapping[str, Queue] = {
    "slurm": Queue("SLURMCluster", ("squeue", "--noheader", "--format=%A", "--user"), "--mem=", "SBATCH -t "),
    "pbs": Queue("PBSCluster", ("qstat", "-u"), "#none", "-l walltime="),
    "lsf": Queue("LSFCluster", ("bjobs", "-noheader", "-o", "jobid", "-u"), "BSUB -M ", "BSUB -W "),
    "sge": Queue("SGECluster", ("qstat", "-u"), "#none", "-l h_rt="),
}


def job_classes(kind: str) -> tuple[Any, Any]:
    """Return dask-jobqueue's classes of a queue's cluster and of its jobs.

    Raises:
        MissingExtra: dask-jobqueue is not installed.
        ClusterError: The queue's commands are not on this machine, or this isn't the main thread.
    """
    # Its import makes Ctrl-C end the process as if all were well, and fails in any other thread.
    if threading.current_thread() is not threading.main_thread():
        raise ClusterError(f"A build on {kind} has to be started by the main thread of its process.")
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError:
        raise MissingExtra(
            f"--cluster {kind} needs dask-jobqueue, which is not installed: pip install 'influence[cluster]'."
        ) from None
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    cluster = getattr(dask_jobqueue, QUEUES[kind].cluster)
    for command in (cluster.job_cls.submit_command, cluster.job_cls.cancel_command, QUEUES[kind].listing[0]):
        if shutil.which(command) is None:
            raise ClusterError(
                f"cluster.kind is {kind}, and there is no command {command} on this machine. Start the build where "
                "jobs can be submitted, on a login node or in a job of its own (scripts/slurm/), or name another kind."
            )
    return cluster, cluster.job_cls


def dask_settings(kind: str) -> Any:
    """Return a context in which nothing but the settings limits a job's time: dask-jobqueue would, to 30 minutes."""
    return dask.config.set({f"jobqueue.{kind}.walltime": None})


def coordinator_address(settings: ClusterSettings) -> str:
    """Return the one address of this machine at which the coordinator of a queue's jobs listens.

    Raises:
        ClusterError: There is no such interface as the settings name, or it has no address.
    """
    interface = _interface(settings)
    if interface is None:
        return str(get_ip())
    try:
        return str(get_ip_interface(interface))
    except ValueError as error:
        raise ClusterError(f"cluster.job.interface is {interface!r}: {error}.") from error


def _interface(settings: ClusterSettings) -> str | None:
    return settings.job.interface or dask.config.get(f"jobqueue.{settings.kind}.interface", None)


def job_options(
    settings: ClusterSettings, slots: int, environment: Mapping[str, str], logs: Path, coordinator: str
) -> dict[str, Any]:
    """Return what dask-jobqueue makes a queue's jobs with.

    Args:
        settings: The cluster section, of a batch queue.
        slots: Tasks that a worker takes at a time.
        environment: What a job's processes find.
        logs: Where a job's output goes; in reach of every node.
        coordinator: The address that workers connect to. They listen where they reach it from, or at the interface.
    """
    job, queue = settings.job, QUEUES[settings.kind]
    cores = job.cores or job.workers * settings.threads_per_worker
    skipped = [queue.memory_line] * (job.memory is None) + [queue.walltime_line] * (job.walltime is None)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    python = shlex.quote(job.python or sys.executable)
    interface = _interface(settings)
    here = [] if interface else [f"{HOST}=$({python} -c {shlex.quote(LOCAL_ADDRESS)} {coordinator})"]
    listens = [] if interface else ["--host", f'"${HOST}"']
    return {
        "cores": slots * job.workers,
        "processes": job.workers,
        "memory": job.memory or SLOT_MEMORY,
        "queue": job.queue,
        "walltime": job.walltime,
        "interface": interface,
        "python": python,
        "job_name": NAME,
        "worker_extra_args": ["--no-dashboard", "--dashboard-address", "127.0.0.1:0", *listens],
        "job_script_prologue": [*exports, *job.prologue, *here],
        "job_directives_skip": skipped,
        **_site_options(settings.kind, job, cores, logs),
    }


def _site_options(kind: str, job: JobSettings, cores: int, logs: Path) -> dict[str, Any]:
    """Return what every kind of queue calls by another name: whom to charge, cores, GPUs, logs."""
    if kind == "slurm":
        output = [f'--output="{logs}/%x-%j.log"']
        gpus = [f"--gres=gpu:{job.gpus}"] * bool(job.gpus)
        return {"account": job.account, "job_cpu": cores, "job_extra_directives": [*output, *gpus, *job.directives]}
    extra: dict[str, Any] = {"job_extra_directives": list(job.directives), "log_directory": str(logs)}
    if kind == "pbs":
        asked = [f"ncpus={cores}"] + [f"ngpus={job.gpus}"] * bool(job.gpus)
        asked += [f"mem={job.memory.replace(' ', '').replace('iB', 'B').lower()}"] if job.memory else []
        return {**extra, "account": job.account, "resource_spec": ":".join(["select=1", *asked])}
    if kind == "lsf":
        gpus = [f"-gpu num={job.gpus}"] * bool(job.gpus)
        return {**extra, "project": job.account, "ncpus": cores, "job_extra_directives": [*gpus, *job.directives]}
    return {**extra, "project": job.account}


def listing_command(kind: str) -> list[str]:
    """Return the command that lists this user's jobs that have not ended."""
    return [*QUEUES[kind].listing, getuser()]


def listed_jobs(output: str) -> set[str]:
    """Return the numbers of the jobs that such a list names."""
    return set(re.findall(r"^\s*(\d+)", output, flags=re.MULTILINE))


def log_tail(logs: Path, job_id: str | None) -> str:
    """Return the last lines that a job wrote, with the name of their file in front; empty where it wrote none."""
    found = [path for path in logs.glob(f"*{job_id}*") if path.is_file() and path.stat().st_size] if job_id else []
    if not found:
        return ""
    newest = max(found, key=lambda path: path.stat().st_mtime)
    lines = newest.read_text(errors="replace").splitlines()[-TAIL:]
    return "\n".join([f"{newest} ends with:", *(f"  {line}" for line in lines)])
