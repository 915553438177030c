"""A run in a bucket is the run on a disk: the same bytes, whatever happened on the way, and the same answers."""

import json
import signal
from contextlib import contextmanager
from pathlib import Path

import dask
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster

import influence
from influence.artifacts.digest import sha256
from influence.artifacts.lock import LOCK, lock_folder
from influence.artifacts.place import run_path
from influence.cli.main import main
from influence.config import parse_config, save_config
from influence.engine.cluster import QUIET
from influence.errors import ConfigError, DigestMismatch, Incomplete, RunLocked, StoreError
from influence.stages import build as build_module
from influence.stages.build import build_run
from influence.stages.status import status
from influence.store.reader import Store
from tests import kills

ASKED = {"prompt": "The river was named after", "completion": " a cartographer who never saw it."}
QUERY = ["--prompt", ASKED["prompt"], "--completion", ASKED["completion"]]
# Factors with EK-FAC's second pass, rows whitened with them, and a decision from whole gradients.
WHITENED = {"name": "whitened", "projection": {"p": 2, "q": 3}, "factors": {"rows": 12}}


@pytest.fixture(scope="module")
def here():
    """A cluster of one worker that lives in this process, for builds whose workers are beside the point."""
    quiet = {"threads_per_worker": 2, "dashboard_address": "127.0.0.1:0", "silence_logs": False}
    with (
        dask.config.set(QUIET),
        LocalCluster(n_workers=1, processes=False, **quiet) as local,
        Client(local, set_as_default=False) as client,
        pytest.MonkeyPatch.context() as patch,
    ):

        @contextmanager
        def connect(*_):
            yield client

        patch.setattr(build_module, "connect", connect)
        yield client


@pytest.fixture(scope="module")
def settings(model_folder, corpus_file):
    def make(**sections):
        return parse_config(
            {
                "model": {"path": str(model_folder("llama")), "dtype": "float32"},
                "data": {"path": str(corpus_file), "max_tokens": 64},
                "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
                "store": {"rows_per_shard": 8, "codec": "float16"},
                "index": {"kind": "flat"},
                "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
                **sections,
            }
        )

    return make


def contents(run_dir) -> dict[str, str]:
    """Digests of a run's files, without its lock and its configuration, which names the workers."""
    if isinstance(run_dir, Path):
        files = {path.relative_to(run_dir).as_posix(): path for path in run_dir.rglob("*") if path.is_file()}
    else:
        files = {name: run_dir / name for name in run_dir.sizes()}
    apart = (".lock", "config.yaml", "config.sig")
    return {name: sha256(path) for name, path in files.items() if not name.startswith(apart)}


@pytest.fixture(scope="module")
def local(settings, here, tmp_path_factory):
    """A run on the disk."""
    run_dir = tmp_path_factory.mktemp("local") / "run"
    build_run(settings(), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def resumed(settings, here, tmp_path_factory):
    """The same run in a bucket, whose first build with a worker of its own was killed, and what then was to be seen."""
    run_dir = run_path("s3://lab/runs/resumed")
    folder = tmp_path_factory.mktemp("killed")
    save_config(settings(), folder / "run.yaml")
    ended = kills.halted(folder / "run.yaml", run_dir, folder / "build.log", "forked", kills.Halt("kill", "capture 2"))
    assert ended == -signal.SIGKILL
    seen = {"locked": (run_dir / LOCK).exists(), "status": status(run_dir)}
    build_run(settings(), run_dir)
    return run_dir, seen


@pytest.fixture
def run_dir(settings, here, folder):
    """A run in a bucket, to be damaged."""
    build_run(settings(), folder)
    return folder


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_to_the_bytes_of_a_run_on_a_disk(resumed, local):
    run_dir, seen = resumed
    assert seen["locked"]
    assert (seen["status"]["complete"], seen["status"]["building"]) == (False, None)
    assert 2 <= seen["status"]["shards_done"] <= 5
    assert contents(run_dir) == contents(local)
    assert not (run_dir / LOCK).exists()


@pytest.mark.slow
def test_a_run_in_a_bucket_answers_as_one_on_a_disk(resumed, local):
    with influence.open(str(resumed[0])) as there, influence.open(local) as at_hand:
        for where in (None, "source = 'shelf-1' and tokens > 5"):
            found, expected = there.query(**ASKED, k=3, where=where), at_hand.query(**ASKED, k=3, where=where)
            assert found.to_json() == expected.to_json()
        assert (there.score([ASKED]) == at_hand.score([ASKED])).all()
        assert there.meta([3, 39]) == at_hand.meta([3, 39])


@pytest.mark.slow
def test_the_command_line_takes_an_address(resumed, local, capfd, tmp_path):
    def said(*argv) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in argv])
        printed = capfd.readouterr()
        assert ended.value.code in (0, None), printed.err
        return printed.out

    run_dir = resumed[0]
    there, at_hand = (json.loads(said("status", run, "--format", "json")) for run in (run_dir, local))
    assert there["path"] == "s3://lab/runs/resumed"
    assert there["complete"]
    # A disk keeps its lock's file.
    assert there["disk"] == sum(run_dir.sizes().values())
    assert {**there, "path": "", "disk": 0} == {**at_hand, "path": "", "disk": 0}
    found = said("query", run_dir, *QUERY, "-k", 2, "--format", "json")
    assert found == said("query", local, *QUERY, "-k", 2, "--format", "json")
    spectra = said("status", run_dir, "--spectra", "--format", "json")
    assert spectra == said("status", local, "--spectra", "--format", "json")


@pytest.mark.slow
def test_scores_of_a_run_in_a_bucket_go_into_a_local_file(resumed, local, here, tmp_path):
    tables = []
    for number, run in enumerate((str(resumed[0]), local)):
        with influence.open(run) as opened:
            opened.score_to([ASKED], tmp_path / f"{number}.parquet", where="tokens > 5")
        tables.append(pq.read_table(tmp_path / f"{number}.parquet"))
    assert tables[0].num_rows > 0
    assert tables[0].equals(tables[1])
    with influence.open(str(resumed[0])) as opened, pytest.raises(ConfigError, match="on this machine's disks only"):
        opened.self_influence_to("s3://lab/scores.parquet")


@pytest.mark.slow
def test_building_a_finished_run_again_leaves_every_object_as_it_was(settings, run_dir):
    before = {name: state.tag for name, state in run_dir.states().items()}
    reported = []
    build_run(settings(), run_dir, reported.append)
    assert {name: state.tag for name, state in run_dir.states().items()} == before
    assert all(step.done == step.total for step in reported)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"recipe": WHITENED, "index": {"kind": "exact"}},
        {"recipe": {"name": "bm25"}},
        {"index": {"kind": "sq8"}},
    ],
    ids=["factors", "words", "codes"],
)
def test_factors_and_every_kind_of_index_are_the_same_in_a_bucket(settings, here, folder, tmp_path, sections):
    config = settings(**sections)
    build_run(config, folder)
    build_run(config, tmp_path / "run")
    assert contents(folder) == contents(tmp_path / "run")
    with influence.open(str(folder)) as there, influence.open(tmp_path / "run") as at_hand:
        assert there.query(**ASKED, k=3).to_json() == at_hand.query(**ASKED, k=3).to_json()


@pytest.mark.slow
def test_a_flipped_bit_of_a_row_is_refused_and_only_its_shard_made_again(settings, run_dir, flip):
    before = contents(run_dir)
    spoilt = run_dir / "rows" / "shard-00002.safetensors"
    flip(spoilt, spoilt.stat().st_size - 3)
    with influence.open(str(run_dir)) as opened, pytest.raises(DigestMismatch, match=f"{spoilt} has sha256") as refused:
        opened.score([ASKED])
    assert f"Delete {spoilt.with_suffix('.json')} and run the same build again" in str(refused.value)
    spoilt.with_suffix(".json").unlink()
    with pytest.raises(Incomplete, match=r"lacks 1 of \d shards: 2"):
        influence.open(str(run_dir))
    captured = []
    build_run(settings(), run_dir, lambda step: captured.append(step) if step.stage == "capture" else None)
    assert captured[0].done == captured[0].total - 1
    assert contents(run_dir) == before
    Store(run_dir).verify()


@pytest.mark.slow
def test_a_flipped_bit_of_the_index_is_refused_by_the_objects_name(run_dir, flip):
    with influence.open(str(run_dir)) as opened:
        opened.query(**ASKED, k=2)
    flip(run_dir / "index" / "index.faiss", 99)
    for _ in range(2):
        with influence.open(str(run_dir)) as opened, pytest.raises(StoreError, match=f"{run_dir}/index/index.faiss"):
            opened.query(**ASKED, k=2)


@pytest.mark.slow
def test_two_builds_into_one_folder_are_refused(settings, here, folder):
    with lock_folder(folder), pytest.raises(RunLocked, match="two builds can't share a run"):
        build_run(settings(), folder)
    assert folder.sizes() == {}


@pytest.mark.slow
def test_a_folder_with_something_else_in_it_is_left_alone(settings, here, folder):
    (folder / "thesis.tex").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"holds thesis\.tex and no run"):
        build_run(settings(), folder)
    assert folder.sizes() == {"thesis.tex": 1}
