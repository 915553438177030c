"""Settings: where the work of a run is done, by how many workers, and what a job of a batch queue asks for."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["local", "cuda", "slurm", "pbs", "lsf", "sge", "address"]
MOST_THREADS = 1024
"""Of a worker: more than machines have cores. The stacks of many thousands may find no room, which ends the process."""
QUEUES = ("slurm", "pbs", "lsf", "sge")
"""Kinds whose workers are jobs of a batch queue."""
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]+$")]


class JobSettings(BaseModel):
    """What one job of a batch queue asks for, and how its workers start. Unset, the queue's own default holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue: Line | None = None
    """The queue, which Slurm calls a partition."""
    account: Line | None = None
    """Whom to charge; LSF and SGE call it a project."""
    walltime: Annotated[str, Field(pattern=r"^[0-9:-]+$")] | None = None
    """How long a job may run, as the queue writes it: 04:00:00 (LSF: 04:00). A shard that a job's end cuts short is
    captured again from its beginning, so it should be many shards long."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Worker processes in a job; each loads the model."""
    cores: Annotated[int, Field(ge=1)] | None = None
    """Cores of a job; unset, `threads_per_worker` for each of its workers."""
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")] | None = None
    """Memory of a job, 16GB or 16GiB. A build logs what a worker needs and compares it with this."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a job: a worker computes on one, so for more GPUs take more jobs. With `model.device_map` it has all."""
    directives: tuple[Line, ...] = ()
    """More lines of the job's header, without their prefix: `--constraint=skylake`, `--requeue`."""
    prologue: tuple[Line, ...] = ()
    """Commands that a job runs before its workers start: `module load cuda`."""
    interface: Line | None = None
    """The network interface on which coordinator and workers find each other: ib0."""
    python: Line | None = None
    """The Python that starts a worker; unset, the one that runs the build."""

    @property
    def memory_bytes(self) -> int | None:
        """What `memory` says, in bytes."""
        if self.memory is None:
            return None
        number, unit = self.memory.rstrip("KMGTiB "), self.memory.lstrip("0123456789. ")
        return int(float(number) * (1024 if "i" in unit else 1000) ** ("KMGT".index(unit[0]) + 1))


class Adapt(BaseModel):
    """Start workers as there is work for them, and let them go when there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: Annotated[int, Field(ge=0)] = 0
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _in_order(self) -> "Adapt":
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}; expected min ≤ max")
        return self


class TlsSettings(BaseModel):
    """PEM files with which to connect to a scheduler of one's own, as dask's `distributed.comm.tls` has them.

    Relative paths are relative to the folder of the run file, or to the working directory with `--set`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca_file: Line
    """The certificate of the authority that signed the scheduler's."""
    cert: Line
    """The certificate that this client shows."""
    key: Line
    """Its private key."""


class ClusterSettings(BaseModel):
    """Where the work is done and in what portions.

    `token_budget`, `threads_per_worker` and the kind of device decide the order of float additions, so they are part
    of a run's fingerprint; the kind of cluster and the number of workers decide nothing but the time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "local"
    """Processes of this machine (`cuda`: one a GPU, all on GPUs), jobs of a batch queue, or a Dask scheduler's."""
    address: Annotated[str, Field(pattern=r"^\w+://\S+:\d+$")] | None = None
    """The scheduler to use, `tls://host:8786`; workers started by someone else, with the run directory in reach. With
    `tcp://`, whoever reaches its port runs code as you."""
    tls: TlsSettings | None = None
    """How to connect to a `tls://` address; unset, as dask's own settings say. Clusters that a build starts have keys
    of their own."""
    dashboard: bool = False
    """Serve dask's pages about the cluster on 127.0.0.1, for every user of this machine to read; needs bokeh."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Worker processes. Unset, one a GPU, or one for every `threads_per_worker` cores; in a queue, those of one job.
    0 starts none: the calling process computes. A scheduler at an address brings its own."""
    adapt: Adapt | None = None
    """In the place of `workers`: between so many and so many, as there is work."""
    threads_per_worker: Annotated[int, Field(ge=1, le=MOST_THREADS)] = 1
    token_budget: Annotated[int, Field(ge=2)] | None = None
    """Padded tokens a batch holds; a longer example goes alone. Unset, 2,048 on a CPU and 16,384 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    job: JobSettings = JobSettings()
    """What a job asks for; other kinds than slurm, pbs, lsf and sge start none."""

    @property
    def here(self) -> bool:
        """Whether workers are processes of this machine that nobody else uses."""
        return self.kind in ("local", "cuda")

    @property
    def queued(self) -> bool:
        """Whether workers are jobs of a batch queue."""
        return self.kind in QUEUES

    @model_validator(mode="before")
    @classmethod
    def _on_gpus(cls, found: Any) -> Any:
        """Decide the device where a GPU was asked for by name: never to be computed on the CPU instead."""
        if not isinstance(found, dict) or found.get("device", "auto") != "auto":
            return found
        job = found.get("job") or {}
        gpus = job.gpus if isinstance(job, JobSettings) else job.get("gpus", 0) if isinstance(job, dict) else 0
        on_gpus = found.get("kind") == "cuda" or (found.get("kind") in QUEUES and gpus)
        return {**found, "device": "cuda"} if on_gpus else found

    @model_validator(mode="after")
    def _agree(self) -> "ClusterSettings":
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("kind 'address' needs an address (tls://host:port), and only that kind has one")
        if self.tls is not None and not (self.address or "").startswith("tls://"):
            raise ValueError("tls is for a scheduler's address that begins with tls://, and there is none")
        if self.adapt is not None and self.workers is not None:
            raise ValueError("workers is a fixed number and adapt one that changes: keep one of them")
        if self.workers == 0 and self.kind != "local":
            raise ValueError(f"workers 0 computes in the calling process, and kind is {self.kind}: take kind local")
        if self.kind == "cuda" and self.adapt is not None:
            raise ValueError("kind 'cuda' has one worker a GPU from beginning to end: leave adapt out")
        if self.kind == "cuda" and self.device == "cpu":
            raise ValueError("kind 'cuda' computes on GPUs, and device is cpu: take kind local")
        self._check_job()
        return self

    def _check_job(self) -> None:
        job = self.job
        if job.gpus and self.device == "cpu":
            raise ValueError("job.gpus asks for a GPU, and device is cpu: leave one of them out")
        if job.gpus and job.workers > 1:
            raise ValueError("a worker computes on one GPU: with job.gpus take job.workers: 1, and more jobs")
        if self.kind == "sge" and (job.memory or job.gpus or job.cores):
            raise ValueError(
                "SGE's resources have the names that the site gave them: write job.memory, job.gpus and job.cores as "
                "directives, such as '-l h_vmem=16G' and '-pe smp 4'"
            )
