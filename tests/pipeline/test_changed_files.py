"""What a finished run reads again (rows, for exact scores and checks) is what it was built from, or it is refused."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest

import influence.api as runs
from influence.config import parse_config
from influence.data.dataset import DataSettings, open_rows
from influence.data.identity import DataIdentity
from influence.errors import DataError
from influence.stages import build as build_module
from influence.text_dedup.inputs import open_data

EXACT = {"name": "logra", "projection": {"p": 4, "q": 4}, "exact": {"kind": "kfac"}}
QUERY: dict[str, Any] = {"prompt": "The river was named after", "completion": " a cartographer.", "k": 3}


@pytest.fixture(scope="module")
def deciding(model_folder, corpus_file, tmp_path_factory, thread_client):
    """A run that scores exactly, over data of its own."""
    folder = tmp_path_factory.mktemp("deciding")
    data = shutil.copy(corpus_file, folder / "rows.jsonl")
    model = {"path": str(model_folder("llama")), "dtype": "float32"}
    settings = {
        "model": model,
        "data": {"path": str(data), "max_tokens": 64},
        "recipe": EXACT,
        "index": {"kind": "flat"},
        "store": {"rows_per_shard": 16, "codec": "float16"},
        "cluster": {"token_budget": 256, "workers": 1, "device": "cpu"},
    }

    @contextmanager
    def connect(*_):
        yield thread_client

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "connect", connect)
        runs.build(parse_config(settings), folder / "run")
    return folder / "run"


@pytest.fixture
def changed(deciding):
    """`changed(lines)`: write other lines into the run's data; put back afterwards."""
    data = deciding.parent / "rows.jsonl"
    before = data.read_bytes()

    def write(lines: list[str]) -> Path:
        data.write_text("".join(lines))
        return data

    yield write
    data.write_bytes(before)


def lines_of(run: Path) -> list[str]:
    return (run.parent / "rows.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.parametrize("change", ["reversed", "shortened", "emptied", "ruined"])
def test_exact_scores_of_changed_data_are_refused_and_those_of_the_index_are_not(change, deciding, changed):
    lines = lines_of(deciding)
    data = changed(
        {"reversed": lines[::-1], "shortened": lines[:7], "emptied": [], "ruined": ["{\n", *lines[1:]]}[change]
    )
    with runs.open(deciding) as run:
        with pytest.raises(DataError, match=r"rows\.jsonl has changed since .*Put back the data .*--no-exact"):
            run.query(**QUERY, exact=True)
        assert run.query(**QUERY, exact=False).promoting
        with pytest.raises(DataError, match="has changed since"):
            open_data(run)
    data.unlink()
    with runs.open(deciding) as run, pytest.raises(DataError, match=r"that .*run was built from aren't there"):
        run.query(**QUERY)


def test_data_that_are_put_back_are_read_again(deciding, changed):
    with runs.open(deciding) as run:
        before = run.query(**QUERY)
    changed(lines_of(deciding)[::-1])
    changed(lines_of(deciding)[::-1])
    with runs.open(deciding) as run:
        assert run.query(**QUERY).promoting == before.promoting


def test_a_file_that_is_replaced_while_a_run_is_open_changes_none_of_its_scores(deciding, changed):
    with runs.open(deciding) as run:
        before = run.query(**QUERY)
        changed(lines_of(deciding)[::-1])
        assert run.query(**QUERY).promoting == before.promoting


def test_a_change_that_keeps_length_and_time_is_seen(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "one two"}\n')
    rows, times = open_rows(DataSettings(path=str(data))), data.stat()
    identity = DataIdentity(digest=rows.digest(), rows=1, run="runs/x")
    data.write_text('{"text": "two one"}\n')
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match="has changed since runs/x"):
        open_rows(DataSettings(path=str(data)), identity)
    with pytest.raises(DataError, match="changed since it was opened"):
        rows.digest()


def test_a_saved_data_set_is_refused_once_it_is_written_to(tmp_path):
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(folder)
    rows = open_rows(DataSettings(path=str(folder)))
    identity = DataIdentity(digest=rows.digest(), rows=2, run="runs/x")
    assert open_rows(DataSettings(path=str(folder)), identity).example(1).text == "two"
    (file,) = folder.glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[content.index(b"two")] = ord("T")
    file.write_bytes(content)
    with pytest.raises(DataError, match="changed since it was opened"):
        rows.example(1)
    with pytest.raises(DataError, match="has changed since runs/x"):
        open_rows(DataSettings(path=str(folder)), identity)


def test_a_hub_data_set_whose_cached_files_changed_is_refused_and_one_recorded_by_name_is_read(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    hub = datasets.Dataset.load_from_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: hub)
    settings = DataSettings(path="org/corpus", format="hub")
    now, earlier = (
        DataIdentity(digest=digest, rows=2, run="runs/x") for digest in (open_rows(settings).digest(), hub._fingerprint)
    )
    assert len(open_rows(settings, now)) == len(open_rows(settings, earlier)) == 2
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes().replace(b"two", b"tWo"))
    with pytest.raises(DataError, match="has changed since runs/x"):
        open_rows(settings, now)


def test_the_same_bytes_read_as_fewer_rows_are_refused(deciding):
    with runs.open(deciding) as run:
        fewer = run.config.data.model_copy(update={"limit": 3})
        identity = DataIdentity.of(run.manifest.fingerprint_parts, run.rows, run.path)
        with pytest.raises(DataError, match=r"gives 3 rows, and .* was built from 40"):
            open_rows(fewer, identity)
