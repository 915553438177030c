"""What a user types becomes a local path or a path into a bucket, and never one instead of the other."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from influence.artifacts import place
from influence.artifacts.field import RunPath
from influence.artifacts.place import check_local, is_remote, run_path
from influence.errors import ConfigError, MissingExtra


@pytest.mark.parametrize("typed", ["runs/x", "/runs/x", "runs/x/", "./runs/../x", "C:x", "a//b"])
def test_a_local_path_is_what_pathlib_makes_of_it(typed):
    assert run_path(typed) == Path(typed)
    assert not is_remote(run_path(typed))


@pytest.mark.parametrize("typed", ["runs/x\udcff", "file:///runs/\udcff/x", Path("x\udcff")])
def test_a_name_that_is_not_utf_8_is_refused_with_what_to_do(typed):
    with pytest.raises(ConfigError, match=r"x?\\udcff' isn't UTF-8 .* make a symbolic link"):
        run_path(typed)


def test_a_relative_run_below_a_folder_that_is_not_utf_8_is_refused_and_a_link_to_it_works(tmp_path, monkeypatch):
    folder = tmp_path / "\udcff"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="isn't UTF-8"):
        run_path("x")
    (tmp_path / "link").symlink_to(folder)
    assert run_path(tmp_path / "link" / "x") == tmp_path / "link" / "x"


def test_a_pathlib_path_is_passed_on():
    path = Path("runs/x")
    assert run_path(path) is path


@pytest.mark.parametrize("typed", ["file:///runs/x", "local:///runs/x"])
def test_a_file_address_is_a_local_path(typed):
    assert run_path(typed) == Path("/runs/x")


@pytest.mark.parametrize("typed", ["s3://lab/runs/x", "s3://lab/runs/x/", "s3a://lab//runs/x"])
def test_an_address_of_s3_keeps_its_slashes_and_survives_pickling(typed):
    path = run_path(typed)
    assert is_remote(path)
    assert str(path) == "s3://lab/runs/x"
    assert pickle.loads(pickle.dumps(path)) == path == run_path(path)
    assert {path: 1}[run_path("s3://lab/runs/x")] == 1


def test_a_path_into_a_bucket_has_the_names_that_pathlib_would_give():
    path, local = run_path("s3://lab/runs/x") / "rows" / "shard-1.json", Path("/lab/runs/x/rows/shard-1.json")
    assert (path.name, path.stem, path.suffix, path.parent.name) == (local.name, local.stem, local.suffix, "rows")
    assert str(path.with_suffix(".parquet")) == "s3://lab/runs/x/rows/shard-1.parquet"
    assert str(path.with_name("a")) == "s3://lab/runs/x/rows/a"
    assert [str(above) for above in path.parents][-1] == "s3://lab"


def test_a_path_into_a_bucket_cannot_be_taken_for_a_local_file():
    path = run_path("s3://lab/runs/x")
    with pytest.raises(TypeError):
        os.fspath(path)
    with pytest.raises(TypeError):
        shutil.copy(path, "elsewhere")
    with pytest.raises(TypeError):
        Path(path)


@pytest.mark.parametrize("typed", ["s3://", "s3://lab", "s3://lab/", "s3://lab/../other", "s3://lab/./x"])
def test_a_bucket_without_a_folder_is_refused(typed):
    with pytest.raises(ConfigError, match="name a folder in a bucket"):
        run_path(typed)


@pytest.mark.parametrize("typed", ["gs://lab/x", "https://lab/x", "memory://x", "s3x://lab/x"])
def test_stores_that_runs_were_not_tried_on_are_refused(typed):
    with pytest.raises(ConfigError, match="no run can be kept on"):
        run_path(typed)


def test_an_address_that_pathlib_has_spoilt_is_named_with_what_to_give_instead():
    with pytest.raises(ConfigError, match="give the text 's3://lab/x'"):
        run_path(Path("s3://lab/x"))
    with pytest.raises(ConfigError, match="on this machine's disks only"):
        check_local(Path("gs://lab/hits.json"), "answers")
    with pytest.raises(ConfigError, match="expected text"):
        run_path(7)  # type: ignore[arg-type]


def test_without_s3fs_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(place, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'influence\[s3\]'"):
        run_path("s3://lab/x")
    assert run_path("runs/x") == Path("runs/x")


def test_settings_hold_either_kind_of_path_as_text():
    class Settings(BaseModel):
        folder: RunPath

    for typed in ("s3://lab/runs/x", "/runs/x"):
        settings = Settings(folder=run_path(typed))
        assert Settings.model_validate_json(settings.model_dump_json()) == settings
        assert settings.model_dump(mode="json") == {"folder": typed}
    with pytest.raises(ValidationError, match="no run can be kept on"):
        Settings(folder="gs://lab/x")  # type: ignore[arg-type]
