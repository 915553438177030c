"""Workers that are jobs: their headers on every kind of queue, and their lives on one that a script plays."""

import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from distributed.utils import get_ip
from failing_tasks import told_pid
from sockets import hosts_since, listening

from influence.cluster import ClusterSettings
from influence.engine import jobqueue
from influence.engine.cluster import TASK_SLOTS, connect, list_workers, worker_environment
from influence.engine.jobqueue import job_options, listed_jobs, log_tail
from influence.engine.submit import run_tasks
from influence.errors import ClusterError, MissingExtra
from tests.cli.conftest import until

# Its import takes Ctrl-C over, here from pytest.
ctrl_c = signal.getsignal(signal.SIGINT)
dask_jobqueue = pytest.importorskip("dask_jobqueue")
signal.signal(signal.SIGINT, ctrl_c)

COMMANDS = {"pbs": ("qsub", "qstat", "qdel"), "lsf": ("bsub", "bjobs", "bkill"), "sge": ("qsub", "qstat", "qdel")}


@pytest.fixture
def fake_queue(tmp_path, monkeypatch):
    """`fake_queue("pbs")`: put a queue's commands on the path and return their folder of jobs."""

    def play(kind):
        bin_folder, folder = tmp_path / "bin", tmp_path / "queue"
        for made in (bin_folder, folder):
            made.mkdir()
        for command in COMMANDS[kind]:
            (bin_folder / command).symlink_to(Path(__file__).with_name("fake_queue.sh"))
        monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[2]}")
        monkeypatch.setenv("FAKE_QUEUE", str(folder))
        return folder

    return play


def script(tmp_path, monkeypatch, kind, **job):
    """Return the script of a job, without submitting any."""
    settings = ClusterSettings.model_validate({"kind": kind, "threads_per_worker": 3, "job": job})
    options = job_options(settings, TASK_SLOTS, worker_environment(settings, job=True), tmp_path / "jobs", "127.0.0.1")
    classes = getattr(dask_jobqueue, jobqueue.QUEUES[kind].cluster)
    with jobqueue.dask_settings(kind):
        return classes.job_cls("tls://here:1", name="worker", **options).job_script().splitlines()


def test_a_slurm_job_asks_for_what_the_settings_say(tmp_path, monkeypatch):
    job = {"queue": "long", "account": "mine", "walltime": "1-00:00:00", "memory": "16GiB", "gpus": 1}
    lines = script(tmp_path, monkeypatch, "slurm", **job, directives=["--requeue"], prologue=["module load cuda"])
    header = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert header == [
        *("-J influence", "-p long", "-A mine", "-n 1", "--cpus-per-task=3", "--mem=16G", "-t 1-00:00:00"),
        *(f'--output="{tmp_path}/jobs/%x-%j.log"', "--gres=gpu:1", "--requeue"),
    ]
    assert lines.index("module load cuda") == len(lines) - 3
    assert "--nthreads 2" in lines[-1]
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE=False" in lines
    assert not any("MALLOC" in line for line in lines), "a worker on a GPU has the environment of a local one there"


@pytest.mark.parametrize("kind", ["slurm", "pbs", "lsf", "sge"])
def test_what_is_not_set_is_left_to_the_queue(tmp_path, monkeypatch, kind):
    lines = script(tmp_path, monkeypatch, kind)
    text = "\n".join(line for line in lines if line.startswith("#") and "cpus" not in line)
    assert not any(word in text for word in ("mem", "-M", "walltime", "-W", "-t ", "h_rt", "gpu", "-A", "-P"))
    assert {"export OMP_NUM_THREADS=3", "export MALLOC_ARENA_MAX=1"} <= set(lines)


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("pbs", {"#PBS -l select=1:ncpus=3:ngpus=1:mem=16gb", "#PBS -A mine", "#PBS -l walltime=04:00", "#PBS -k oed"}),
        ("lsf", {"#BSUB -n 3", "#BSUB -gpu num=1", "#BSUB -W 04:00", '#BSUB -P "mine"', "#BSUB -k oed"}),
        ("sge", {"#$ -l h_rt=04:00", "#$ -P mine", "#$ -k oed"}),
    ],
)
def test_the_other_queues_are_asked_in_their_own_words(tmp_path, monkeypatch, kind, lines):
    resources = {} if kind == "sge" else {"memory": "16GB", "gpus": 1}
    found = script(tmp_path, monkeypatch, kind, account="mine", walltime="04:00", directives=["-k oed"], **resources)
    assert lines <= set(found)


def test_every_queues_list_of_jobs_is_read():
    squeue, bjobs = "  12\n13\n", "12\n13\n"
    qstat = "\nserver:\nJob ID          Username\n--------------- --------\n12.server       me\n13.server  me\n"
    gridengine = "job-ID  prior   name\n-----------------\n     12 0.5 influence me r\n     13 0.5 influence me qw\n"
    assert all(listed_jobs(output) == {"12", "13"} for output in (squeue, bjobs, qstat, gridengine))
    assert listed_jobs("") == set()


def test_the_end_of_a_jobs_log_is_quoted_by_its_number(tmp_path):
    (tmp_path / "influence-12.log").write_text("\n".join(f"line {number}" for number in range(100)))
    (tmp_path / "influence-13.log").write_text("another's")
    told = log_tail(tmp_path, "12")
    assert told.startswith(f"{tmp_path}/influence-12.log ends with:\n  line 80\n")
    assert told.endswith("line 99")
    assert log_tail(tmp_path, "14") == log_tail(tmp_path, None) == ""


@pytest.mark.slow
def test_a_job_that_is_killed_is_replaced_and_all_are_cancelled_at_the_end(fake_queue, tmp_path, caplog):
    folder, run_dir = fake_queue("pbs"), tmp_path / "run"
    caplog.set_level(logging.INFO, "influence")
    with connect(ClusterSettings(kind="pbs", workers=1), 10, run_dir) as client:
        (first,) = run_tasks(client, told_pid, [0], str)
        subprocess.run(["qdel", "1"], check=True)
        (second,) = run_tasks(client, told_pid, [0], str)
        assert len({first, second, os.getpid()}) == 3
    assert "Job 1 has ended before the build has; another takes its place." in caplog.messages
    assert sorted(path.name for path in folder.glob("job-*")) == ["job-1", "job-2"]
    until(lambda: subprocess.run(["qstat"], capture_output=True, check=True).stdout == b"")
    assert not (run_dir / "jobs").exists(), "a folder of logs without a log stays behind"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lsf", "sge"])
def test_the_other_queues_jobs_work_too(fake_queue, tmp_path, kind):
    fake_queue(kind)
    run_dir, before = tmp_path / "a run's", listening()
    with connect(ClusterSettings(kind=kind, workers=1), 10, run_dir) as client:
        (pid,) = run_tasks(client, told_pid, [0], str)
        assert pid != os.getpid()
        addresses = [client.scheduler.address, *list_workers(client)]
        assert all(address.startswith(f"tls://{get_ip()}:") for address in addresses), addresses
        (key,) = run_dir.glob("jobs/.keys-*/key.pem")
        assert (stat.S_IMODE(key.stat().st_mode), stat.S_IMODE(key.parent.stat().st_mode)) == (0o600, 0o700)
        assert hosts_since(before, pid, psutil.Process(pid).ppid()) <= {"127.0.0.1", get_ip()}
    assert not list(run_dir.glob("jobs/.keys-*"))


def test_jobs_that_come_to_nothing_one_after_the_other_end_the_build(fake_queue, tmp_path):
    fake_queue("pbs")
    settings = ClusterSettings.model_validate({"kind": "pbs", "job": {"python": "/bin/false"}})
    with (
        pytest.raises(ClusterError, match=r"(?s)Job \d has ended, and its worker never reported.*3 jobs in a row"),
        connect(settings, 10, tmp_path / "run") as client,
    ):
        list(run_tasks(client, told_pid, [0], str))


def test_a_queue_that_refuses_a_job_is_quoted_and_leaves_no_folder(fake_queue, tmp_path):
    (fake_queue("pbs") / "closed").touch()
    with (
        pytest.raises(ClusterError, match=r"The pbs queue refused a job: the queue is closed\nCorrect cluster\.job"),
        connect(ClusterSettings(kind="pbs"), 10, tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run" / "jobs").exists()


def test_ctrl_c_stays_what_it_was(fake_queue):
    fake_queue("pbs")
    code = "import signal; from influence.engine.jobqueue import job_classes; job_classes('pbs'); "
    code += "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    deaf = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    subprocess.run([sys.executable, "-c", deaf + code], check=True)


def test_a_queue_whose_commands_are_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="no command bsub"), connect(ClusterSettings(kind="lsf"), 1, tmp_path):
        pass


def test_a_queue_without_dask_jobqueue_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(MissingExtra, match=r"influence\[cluster\]"), connect(ClusterSettings(kind="sge"), 1, tmp_path):
        pass
