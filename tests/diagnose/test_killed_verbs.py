"""Real kills of `issues`, `export` and `export --undo`: the same command then makes what an undisturbed one makes."""

import json
import random
import shutil
import signal

import pytest

import influence.api as runs
from influence.config import parse_config
from influence.export.decisions import decisions_path
from tests import kills
from tests.diagnose.exported import run_of, table_of
from tests.kills import killed, killed_within, timed

pytestmark = pytest.mark.slow

MOMENTS = (
    ("influence.text_dedup.minhash:_signed", 1),
    ("influence.neighbors.stage:save_near", 1),
    ("influence.issues.issues:publish", 1),
    ("influence.issues.issues:remove_parts", 1),
)
AT_RANDOM = 3
ROWS = 20_000


@pytest.fixture
def run(model_folder, corpus_file, tmp_path, client):
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(corpus_file), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path / "run").path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_examination_that_is_killed_again_and_again_gives_the_same_table_and_leaves_nothing(run, tmp_path):
    log, made, graph = tmp_path / "log", tmp_path / "made", run / "neighbours"
    made.mkdir()
    whole = timed(kills.examine, (run, tmp_path / "whole.parquet"), log)
    expected, out = (tmp_path / "whole.parquet").read_bytes(), made / "issues.parquet"
    graphs = names_in(graph)
    shutil.rmtree(graph)
    given = kills.examine, (run, out), log
    for where, calls in MOMENTS:
        assert killed(*given, where, calls) == -signal.SIGKILL, f"{where} wasn't called: {log.read_text()[-3000:]}"
    assert out.exists()
    assert names_in(made) == ["issues.parquet", "issues.parquet.parts"]
    assert killed(*given, "influence.issues.issues:publish", 2) == 0, log.read_text()[-3000:]
    assert (names_in(made), out.read_bytes()) == (["issues.parquet"], expected)

    shutil.rmtree(graph)
    out.unlink()
    assert killed(*given, "influence.neighbors.stage:save_near", 1, signal.SIGINT) == 4
    assert "un the same command again" in log.read_text()
    moments = random.Random(0)
    for _ in range(AT_RANDOM - 1):
        killed_within(*given, moments.uniform(0, whole))
    out.unlink(missing_ok=True)
    assert killed(*given, "influence.issues.issues:publish", 2) == 0, log.read_text()[-3000:]
    assert (names_in(made), out.read_bytes(), names_in(graph)) == (["issues.parquet"], expected, graphs)
    assert "Traceback" not in log.read_text()


def test_an_export_and_its_undoing_that_are_killed_again_and_again_lose_no_byte(tmp_path):
    data, log, made = tmp_path / "rows.jsonl", tmp_path / "log", tmp_path / "made"
    made.mkdir()
    with data.open("w") as file:
        for row in range(ROWS):
            file.write(json.dumps({"text": f"row {row} " + "ä" * (row % 97), "label": row % 3}, ensure_ascii=False))
            file.write("\r\n" if row % 7 else "\n\n")
    table = table_of(run_of(data), tmp_path / "issues.parquet", drop=range(0, ROWS, 3))
    whole = timed(kills.export, (data, table, tmp_path / "whole.jsonl"), log)
    expected = [path.read_bytes() for path in (tmp_path / "whole.jsonl", tmp_path / "whole.decisions.parquet")]

    out, back = made / "clean.jsonl", made / "back.jsonl"
    given = kills.export, (data, table, out), log
    for where, calls in (
        ("influence.artifacts.partial:PartialFile.write", ROWS // 2),
        ("influence.export.clean:_publish", 1),
        ("influence.export.clean:sync_folder", 1),
    ):
        assert killed(*given, where, calls) == -signal.SIGKILL, f"{where} wasn't called: {log.read_text()[-3000:]}"
    assert out.exists()
    moments, at_work = random.Random(1), 0
    for _ in range(AT_RANDOM):
        at_work += killed_within(*given, moments.uniform(0, whole))
        for path in (out, decisions_path(out)):
            path.unlink(missing_ok=True)
    assert at_work > 0, "no kill came before the end"
    assert killed(*given, "influence.artifacts.partial:PartialFile.write", ROWS // 2, signal.SIGINT) == 4
    assert "Nothing was written. Run the same command again" in log.read_text()
    assert names_in(made) == []
    timed(*given)
    assert names_in(made) == ["clean.decisions.parquet", "clean.jsonl"]
    assert [path.read_bytes() for path in (out, decisions_path(out))] == expected

    given = kills.undo, (out, back), log
    for where, calls in (
        ("influence.artifacts.partial:PartialFile.write", ROWS // 4),
        ("influence.export.undo:sync_folder", 1),
    ):
        assert killed(*given, where, calls) == -signal.SIGKILL, f"{where} wasn't called: {log.read_text()[-3000:]}"
    timed(*given)
    assert names_in(made) == ["back.jsonl", "clean.decisions.parquet", "clean.jsonl"]
    assert back.read_bytes() == data.read_bytes()
    assert "Traceback" not in log.read_text()
