"""`influence plan`: what a build would take; nothing is started and nothing is written."""

import json
from pathlib import Path

import pytest

from influence.cli.plan import worker_counts
from influence.cli.tables import duration, size

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_plan_tells_columns_bytes_memory_and_hours_and_writes_nothing(cli, run_file, here):
    ended = cli("plan", "-c", run_file())
    assert ended.code == 0, ended.err
    for part in (
        "40 in 5 shards of at most 8",
        "224 of 14 layers",
        "tokens/s a worker",
        "worker-hours: capture",
        "on disk",
        "curvature",
        "queries in one call",
        "s of measurement",
    ):
        assert part in ended.out
    assert "1 (planned)" in ended.out
    assert list(here.iterdir()) == []


def test_a_single_shard_is_told_in_the_singular(cli, run_file, here):
    ended = cli("plan", "-c", run_file(), "--set", "store.rows_per_shard=100", "--set", "data.limit=30")
    assert "30 in 1 shard of at most 30" in ended.out


def test_a_plan_in_json_has_every_number(cli, run_file, here):
    ended = cli("plan", "-c", run_file(), "--set", "recipe.projection.p=2", "--format", "json")
    plan = json.loads(ended.out)
    assert (plan["rows"], plan["dims"], plan["shards"], plan["dtype"]) == (40, 112, 5, "float32")
    assert plan["disk"] == plan["disk_rows"] + plan["disk_curvature"] + plan["disk_index"]
    assert plan["tokens_per_second"] > 0
    assert plan["coverage"]["tracked"] < plan["coverage"]["trained"]
    assert 0.9 < plan["coverage"]["body_share"] < 1
    (one, two), start = (plan["hours_by_workers"][count] * 3600 for count in "12"), plan["start_seconds"]
    # Five shards are three rounds for two workers; factors and a decomposition that one worker does take as long.
    capture = plan["stages"]["capture"]["seconds"]
    assert plan["stages"]["capture"]["tasks"] == 5
    assert one - start == pytest.approx(sum(stage["seconds"] for stage in plan["stages"].values()))
    assert one - start == pytest.approx(3600 * plan["worker_hours"])
    assert one - two >= capture * 2 / 5 - 1e-9
    assert list(here.iterdir()) == []


def test_a_plan_says_what_one_query_and_so_many_take(cli, run_file, here):
    ended = cli("plan", "-c", run_file(), "--queries", "20", "--format", "json")
    query = json.loads(ended.out)["query"]
    assert set(query["queries"]) == {"1", "20"}
    one, twenty = query["queries"]["1"], query["queries"]["20"]
    assert twenty["seconds"] - one["seconds"] == pytest.approx(19 * query["seconds"])
    assert twenty["memory"] >= one["memory"] > 0
    assert cli("plan", "-c", run_file(), "--queries", "0").code == 2


def test_what_a_build_would_refuse_a_plan_refuses(cli, run_file, written):
    ended = cli("plan", "-c", run_file(data=written({"body": "a"})))
    assert ended.code == 2
    assert "has no column to score" in ended.told
    ended = cli("plan", "-c", run_file(), "--set", "model.layers.include=[nosuchlayer]")
    assert ended.code == 2
    assert "nosuchlayer" in ended.told
    assert "Traceback" not in ended.err


def test_worker_counts_go_up_to_one_a_shard_and_hold_the_configured():
    assert worker_counts(1, 5) == [1, 2, 4]
    assert worker_counts(3, 2) == [1, 2, 3]
    assert worker_counts(2, 10_000)[-1] == 64


def test_sizes_and_times_read_well():
    assert [size(count) for count in (0, 999, 1500, 2.5e9, 3e15)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.5 GB",
        "3e+03 TB",
    ]
    assert [duration(hours) for hours in (0.001, 0.5, 3, 240)] == ["3.6 s", "30 min", "3.0 h", "10 days"]
    assert duration(float("inf")) == "unknown"
