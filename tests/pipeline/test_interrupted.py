"""Real processes: any number of workers, a kill at any point and Ctrl-C lead to the same bytes."""

import random
import shutil
import signal
import time

import pytest

from influence.config import save_config
from influence.engine.cluster import connect
from influence.stages import build as build_module
from influence.stages.build import build_run
from influence.store.manifest import Manifest
from influence.store.reader import missing_shards
from tests import kills
from tests.forkserver import workers_forked
from tests.kills import Halt

pytestmark = pytest.mark.slow

# Every stage at once: factors with EK-FAC's second pass, rows whitened with them, a Fisher of those rows, an index.
STAGES = ("recipe.projection.rows=whitened", "recipe.exact.kind=ekfac", "recipe.factors.rows=12")
MOMENTS = 24
"""Equal parts of a build's duration; a kill comes at a moment drawn from each."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the uninterrupted run is kept once a test has made it."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def reference(whole, configured, in_process, contents):
    if not whole.exists():
        build_run(configured(*STAGES), whole)
    return contents(whole)


@pytest.fixture
def halted(configured, tmp_path):
    """`halted(how, step, *overrides)`: build until a step; the exit code, and what was printed on both streams."""

    def halt(how, step, *overrides, workers="forked"):
        settings, log = tmp_path / "settings.yaml", tmp_path / "build.log"
        save_config(configured(*STAGES, *overrides), settings)
        code = kills.halted(settings, tmp_path / "run", log, workers, Halt(how, step))
        return code, log.with_suffix(".out").read_text(), log.read_text()

    return halt


def test_two_workers_write_the_bytes_of_one(reference, configured, tmp_path, monkeypatch, contents):
    monkeypatch.setattr(build_module, "connect", connect)
    with workers_forked():
        build_run(configured(*STAGES, "cluster.workers=2"), tmp_path / "run")
    assert contents(tmp_path / "run") == reference


@pytest.mark.parametrize("step", ["factors 1", "capture 2", "curvature 3"])
def test_a_build_whose_coordinator_is_killed_gives_the_same_bytes_when_run_again(
    reference, configured, halted, tmp_path, step, contents
):
    code, out, _ = halted("kill", step, "cluster.workers=2")
    assert (code, out) == (-signal.SIGKILL, "")
    assert contents(tmp_path / "run") != reference
    build_run(configured(*STAGES), tmp_path / "run")
    assert contents(tmp_path / "run") == reference


def test_a_worker_that_is_killed_is_replaced_and_the_bytes_are_the_same(reference, halted, tmp_path, contents):
    code, _, said = halted("worker", "capture 1", "cluster.workers=2")
    assert code == 0, said
    assert contents(tmp_path / "run") == reference


def test_ctrl_c_ends_with_exit_code_4_and_no_traceback(reference, configured, halted, tmp_path, contents):
    code, out, said = halted("interrupt", "capture 1", workers="spawned")
    assert (code, out) == (4, ""), said
    assert "Traceback" not in said
    assert "Interrupted." in said
    build_run(configured(*STAGES), tmp_path / "run")
    assert contents(tmp_path / "run") == reference


@pytest.fixture
def built(reference, configured, tmp_path, contents):
    """`built(halt=…, seconds=…)`: build, with a worker that dies with its process, until a step or for some time, and
    return whether the run is whole; then it has the reference's bytes and is removed."""
    settings, log, run_dir = tmp_path / "settings.yaml", tmp_path / "build.log", tmp_path / "run"
    save_config(configured(*STAGES), settings)

    def build(halt=None, seconds=None):
        process = kills.started(settings, run_dir, log, halt=halt)
        process.join(seconds)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return False
        assert process.exitcode == 0, log.read_text()[-3000:]
        assert contents(run_dir) == reference
        shutil.rmtree(run_dir)
        return True

    return build


def test_a_build_that_is_killed_after_each_of_its_steps_loses_nothing_and_changes_nothing(built, tmp_path):
    log, killed = tmp_path / "build.log", 0
    while not built(Halt("kill")):
        killed += 1
    steps = set(kills.steps_in(log))
    # Some are never reported where two tasks end at once.
    assert killed == len(steps) >= 15
    assert {step.split()[0] for step in steps} == {"factors", "capture", "curvature", "index"}


def test_kills_at_moments_that_nobody_chose_lose_nothing_and_change_nothing(built, tmp_path):
    draws, run_dir = random.Random(0), tmp_path / "run"
    assert built()
    began = time.monotonic()
    assert built()
    seconds = time.monotonic() - began
    moments = [seconds * (part + draws.random()) / MOMENTS for part in range(MOMENTS)]
    draws.shuffle(moments)
    # A build goes on from the kill before it; a whole one makes room for the next.
    midway = [not built(seconds=moment) and some_shards(run_dir) for moment in moments]
    assert any(midway), "no kill came while shards were written"
    assert built()


def some_shards(run_dir) -> bool:
    """Whether some shards are there and others are not."""
    if not (run_dir / "manifest.json").exists():
        return False
    manifest = Manifest.load(run_dir)
    return 0 < len(missing_shards(run_dir, manifest)) < len(manifest.shards)
