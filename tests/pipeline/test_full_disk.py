"""A disk that is full in the middle of a stage: code 4, a sentence, nothing half-written, and the same bytes later."""

import os
import shutil
import subprocess

import pytest

from index.errors import VectorIndexError
from influence.errors import InfluenceError
from influence.stages.build import build_run

ROWS = ("recipe.projection.p=8", "recipe.projection.q=8", "store.rows_per_shard=4")


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own, and `left(bytes)`: let the disk have so many free."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode == 0

    if not (shutil.which("mount") and mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")):
        pytest.skip("no disk may be mounted here")

    def left(size):
        found = os.statvfs(folder)
        assert mount("-o", f"remount,size={(found.f_blocks - found.f_bfree) * found.f_frsize + size}")

    yield folder, left
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("stage", "before", "settings"),
    [
        ("capture", None, ("recipe.name=graddot", "index.kind=exact")),
        ("curvature", ("recipe.name=graddot", "index.kind=exact"), ("recipe.name=logra", "index.kind=exact")),
        ("index", ("recipe.name=graddot", "index.kind=exact"), ("recipe.name=graddot", "index.kind=flat")),
        ("index", ("recipe.name=graddot", "index.kind=exact"), ("recipe.name=graddot", "index.kind=ivf_sq8")),
    ],
)
def test_a_build_goes_on_from_a_disk_that_was_full_in_its(
    configured, in_process, tmp_path, disk, contents, stage, before, settings
):
    (folder, left), stages = disk, []
    if before is not None:
        build_run(configured(*ROWS, *before), folder / "run")
    left(40_000 if stage == "capture" else 24_000)
    config = configured(*ROWS, *settings)
    with pytest.raises(
        (InfluenceError, VectorIndexError), match=r"bytes (of the disk )?are free.*([Mm]ake room|Free some space)"
    ) as full:
        build_run(config, folder / "run", lambda step: stages.append(step.stage))
    assert full.value.exit_code == 4
    assert stages[-1] == stage
    left(2**24)
    build_run(config, folder / "run")
    assert not list(folder.rglob("*.partial"))
    build_run(config, tmp_path / "whole")
    assert contents(folder / "run") == contents(tmp_path / "whole")
