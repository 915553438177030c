"""Real processes: any number of workers, a kill at any point and Ctrl-C lead to the same bytes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from influence.config import save_config
from influence.engine.cluster import connect
from influence.stages import build as build_module
from influence.stages.build import build_run

pytestmark = pytest.mark.slow

# Every stage at once: factors with EK-FAC's second pass, rows whitened with them, a Fisher of those rows, an index.
STAGES = ("recipe.projection.rows=whitened", "recipe.exact.kind=ekfac", "recipe.factors.rows=12")

# No `if __name__ == "__main__"`: starting workers must not run the script again.
SCRIPT = textwrap.dedent("""
    import os, signal, sys
    import psutil
    from pathlib import Path
    from influence.config import load_config
    from influence.errors import InfluenceError
    from influence.stages.build import build_run

    config, run_dir, how, stage, done, workers = sys.argv[1:]

    def stop(step):
        if (step.stage, step.done) == (stage, int(done)):
            Path(workers).write_text(" ".join(str(child.pid) for child in psutil.Process().children(recursive=True)))
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "kill a worker":
                named = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
                named[0].kill()
                return
            os.killpg(0, signal.SIGINT)

    try:
        build_run(load_config(config), Path(run_dir), stop)
    except InfluenceError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
""")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the uninterrupted run is kept once a test has made it."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def reference(whole, configured, in_process, contents):
    if not whole.exists():
        build_run(configured(*STAGES), whole)
    return contents(whole)


def stopped(config, run_dir: Path, how: str, stage: str, done: int):
    """Build in a process of its own until a step, stop it there, and return it once its workers are gone too."""
    script, settings, workers = (run_dir.parent / name for name in ("build.py", "settings.yaml", "workers"))
    script.write_text(SCRIPT)
    save_config(config, settings)
    command = [sys.executable, str(script), str(settings), str(run_dir), how, stage, str(done), str(workers)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment, start_new_session=True, timeout=250
    )
    assert workers.exists(), finished.stderr
    left = [psutil.Process(int(pid)) for pid in workers.read_text().split() if psutil.pid_exists(int(pid))]
    assert left == [] or psutil.wait_procs(left, timeout=60)[1] == []
    return finished


def test_two_workers_write_the_bytes_of_one(reference, configured, tmp_path, monkeypatch, contents):
    monkeypatch.setattr(build_module, "connect", connect)
    build_run(configured(*STAGES, "cluster.workers=2"), tmp_path / "run")
    assert contents(tmp_path / "run") == reference


@pytest.mark.parametrize(("stage", "done"), [("factors", 1), ("capture", 2), ("curvature", 3)])
def test_a_killed_build_run_again_gives_the_same_bytes(
    reference, configured, in_process, tmp_path, stage, done, contents
):
    run_dir = tmp_path / "run"
    finished = stopped(configured(*STAGES, "cluster.workers=2"), run_dir, "kill", stage, done)
    assert finished.returncode == -9
    assert finished.stdout == ""
    assert contents(run_dir) != reference
    build_run(configured(*STAGES), run_dir)
    assert contents(run_dir) == reference


def test_a_worker_that_is_killed_is_replaced_and_the_bytes_are_the_same(reference, configured, tmp_path, contents):
    run_dir = tmp_path / "run"
    finished = stopped(configured(*STAGES, "cluster.workers=2"), run_dir, "kill a worker", "capture", 1)
    assert finished.returncode == 0, finished.stderr
    assert contents(run_dir) == reference


def test_ctrl_c_ends_with_exit_code_4_and_no_traceback(reference, configured, in_process, tmp_path, contents):
    run_dir = tmp_path / "run"
    finished = stopped(configured(*STAGES, "cluster.workers=2"), run_dir, "interrupt", "capture", 1)
    assert finished.returncode == 4, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    assert "Interrupted." in finished.stderr
    build_run(configured(*STAGES), run_dir)
    assert contents(run_dir) == reference
