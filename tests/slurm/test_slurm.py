"""On a real Slurm of one node: builds whose jobs are cancelled halfway end with the bytes of a local one."""

import json
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from influence.config import load_config
from influence.stages.build import build_run
from tests.conftest import SENTENCES
from tests.slurm.one_node import jobs, one_node, why_not

pytestmark = pytest.mark.slurm

ROWS, ROWS_PER_SHARD = 3000, 40
SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
TIMEOUT = 120


@pytest.fixture(scope="module")
def slurm():
    """The environment of a Slurm that runs while this module's tests do."""
    missing = why_not() or (None if find_spec("dask_jobqueue") else "dask-jobqueue isn't installed")
    if missing:
        pytest.skip(f"NO SLURM HERE, SO NOTHING WAS TRIED ON ONE: {missing}.")
    with one_node() as environment:
        yield {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


@pytest.fixture(scope="module")
def run_file(model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    words, draw = " ".join(SENTENCES).split(), random.Random(0)
    lines = [" ".join(draw.choices(words, k=draw.randint(4, 30))) for _ in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(folder / "rows.jsonl"), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 4, "q": 4}},
        "store": {"rows_per_shard": ROWS_PER_SHARD, "codec": "float16"},
        "index": {"kind": "flat"},
        "cluster": {"token_budget": 256, "device": "cpu"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def reference(run_file, slurm) -> dict[str, bytes]:
    """The files of the same run, built by a process of this machine without an interruption."""
    folder = run_file.parent / "reference"
    build_run(load_config(run_file, ["cluster.workers=1"]), folder)
    return files(folder)


def files(run_dir: Path) -> dict[str, bytes]:
    """Return a run's files but for its configuration, which names the cluster, its lock, and its jobs' logs."""
    found = [path for path in sorted(run_dir.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    relative = {path.relative_to(run_dir): path for path in found if path.stem != "config"}
    return {str(name): path.read_bytes() for name, path in relative.items() if name.parts[0] != "jobs"}


def standing(run_dir: Path) -> int:
    return len(list((run_dir / "rows").glob("*.json")))


def until(ready, still=lambda: True, log: Path | None = None) -> None:
    """Wait for something to be so while something else is; what a job wrote says why it wasn't."""
    end = time.monotonic() + TIMEOUT
    while not ready():
        going, told = still(), log.read_text() if log is not None and log.exists() else ""
        assert going or ready(), f"it ended before. {told}"
        assert time.monotonic() < end, f"it did not come to be. {told}"
        time.sleep(0.05)


def sbatch(slurm, script: str, *arguments) -> str:
    """Submit one of the scripts and return its job's number; its log is in the run file's folder."""
    folder = Path(arguments[0]).parent
    command = ["sbatch", "--parsable", f"--output={folder}/job-%j.log", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, env=slurm, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_build_whose_job_is_cancelled_halfway_goes_on_in_another_to_the_same_bytes(slurm, run_file, reference):
    run_dir = run_file.parent / "cancelled"
    command = ["influence", "build", "-c", run_file, "--out", run_dir, "--cluster", "slurm", "--workers", "1"]
    with subprocess.Popen(command, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as build:
        until(lambda: standing(run_dir) > 2, lambda: build.poll() is None)
        ((first, name),) = jobs(slurm)
        subprocess.run(["scancel", first], env=slurm, check=True)
        left = standing(run_dir)
        out, err = build.communicate(timeout=TIMEOUT)
    assert build.returncode == 0, err
    assert left < len(reference) // 3, "there was nothing left to do for another job"
    assert (name, out) == ("influence", "")
    assert f"Job {first} has ended before the build has; another takes its place." in err
    assert len(list((run_dir / "jobs").glob("influence-*.log"))) == 2
    assert files(run_dir) == reference
    until(lambda: not jobs(slurm))


def test_what_one_allocation_began_before_it_was_cancelled_a_coordinator_job_completes(slurm, run_file, reference):
    run_dir = run_file.parent / "scripts"
    whole = sbatch(slurm, "allocation.sbatch", run_file, run_dir)
    until(lambda: standing(run_dir) > 2, lambda: jobs(slurm), run_file.parent / f"job-{whole}.log")
    subprocess.run(["scancel", whole], env=slurm, check=True)
    until(lambda: not jobs(slurm))
    begun = {path: path.stat().st_mtime_ns for path in (run_dir / "rows").glob("*.json")}
    assert 2 < len(begun) < len(reference) // 3
    coordinator = sbatch(slurm, "coordinator.sbatch", run_file, run_dir, 1)
    until(lambda: not jobs(slurm))
    log = (run_file.parent / f"job-{coordinator}.log").read_text()
    assert "complete already" in log
    assert f"{run_dir} is complete" in log
    assert files(run_dir) == reference
    assert {path: path.stat().st_mtime_ns for path in begun} == begun, "shards that stood were captured again"
    assert not list(run_file.parent.glob(".influence-*")), "the allocation left its meeting place behind"


def test_a_coordinator_that_is_terminated_takes_its_jobs_along(slurm, run_file):
    run_dir = run_file.parent / "terminated"
    command = ["influence", "build", "-c", run_file, "--out", run_dir, "--cluster", "slurm"]
    with subprocess.Popen(command, env=slurm, stderr=subprocess.PIPE, text=True) as build:
        until(lambda: jobs(slurm) or build.poll() is not None)
        build.terminate()
        err = build.communicate(timeout=TIMEOUT)[1]
    assert build.returncode == 4, err
    assert "Interrupted." in err
    until(lambda: not jobs(slurm))
