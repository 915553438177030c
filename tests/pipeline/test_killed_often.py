"""A hundred kills at moments that nobody chose: what is built in the end is what an undisturbed build makes."""

import random
import time

import killed_builds
import pytest

from influence.config import save_config
from influence.stages.build import build_run
from influence.store.manifest import Manifest
from influence.store.reader import missing_shards

STAGES = ("recipe.projection.rows=whitened", "recipe.exact.kind=ekfac", "recipe.factors.rows=12")
KILLS = 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_at_random_moments_lose_nothing_and_change_nothing(configured, in_process, tmp_path, contents):
    config, settings = configured(*STAGES), tmp_path / "settings.yaml"
    save_config(config, settings)
    build_run(config, tmp_path / "undisturbed")
    expected = contents(tmp_path / "undisturbed")
    killed_builds.started(settings, tmp_path / "first").join()
    began = time.monotonic()
    killed_builds.started(settings, tmp_path / "second").join()
    whole = time.monotonic() - began
    moments, kills, finished, midway = random.Random(0), 0, 0, 0
    while kills < KILLS:
        run_dir = tmp_path / f"run-{finished}"
        process = killed_builds.started(settings, run_dir)
        process.join(moments.uniform(0, whole))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            midway += standing(run_dir)
            continue
        assert process.exitcode == 0, run_dir.with_suffix(".log").read_text()[-3000:]
        assert contents(run_dir) == expected
        finished += 1
    run_dir = tmp_path / f"run-{finished}"
    build_run(config, run_dir)
    assert contents(run_dir) == expected
    assert midway > 0, "no kill came while shards were written"


def standing(run_dir) -> bool:
    """Whether some shards stand and others don't."""
    if not (run_dir / "manifest.json").exists():
        return False
    manifest = Manifest.load(run_dir)
    return 0 < len(missing_shards(run_dir, manifest)) < len(manifest.shards)
