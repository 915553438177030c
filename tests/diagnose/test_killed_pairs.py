"""Real kills of verbs that write two files, between the two: the same command goes on, and nothing else is touched."""

import json
import signal

import pytest

import influence.api as runs
from influence.config import parse_config
from tests import kills
from tests.kills import killed

pytestmark = pytest.mark.slow

NEVER = ("influence.artifacts.outfile:already", 99)
DRAWN = ("influence.groups.figure:write_outfile", 1)
CLEARED = ("influence.issues.parts:remove_parts", 1)
VERBS = {
    "issues": (
        ["--checks", "near_duplicate,empty"],
        ("issues.parquet", "--graph", "graph.npz"),
        (("influence.issues.issues:publish", 2), ("influence.issues.issues:remove_parts", 1)),
    ),
    "select": (
        ["--target", "DEV", "--top", 3, "--no-bm25"],
        ("chosen.jsonl", "--figure", "plot.svg"),
        (DRAWN, CLEARED),
    ),
    "groups": (
        ["--queries", "DEV", "--replicates", 100],
        ("groups.csv", "--figure", "bars.html"),
        (DRAWN, CLEARED),
    ),
}


@pytest.fixture(scope="module")
def run(model_folder, corpus_file, tmp_path_factory, client):
    settings = {
        "model": {"path": str(model_folder("llama")), "dtype": "float32"},
        "data": {"path": str(corpus_file), "max_tokens": 64},
        "recipe": {"name": "logra", "projection": {"p": 2, "q": 3}},
        "store": {"rows_per_shard": 8, "codec": "float16"},
        "cluster": {"token_budget": 128, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), tmp_path_factory.mktemp("pairs") / "run").path


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Bread is baked.", "It is sold warm.")))
    return path


def held(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_killed_between_its_two_files_writes_both_when_it_is_said_again(verb, run, dev, tmp_path):
    words, (first, option, second), (between, late) = VERBS[verb]
    words = [dev if word == "DEV" else word for word in words]
    log, made, whole = tmp_path / "log", tmp_path / "made", tmp_path / "whole"

    def given(folder, *more):
        return (verb, run, *words, "--out", folder / first, option, folder / second, *more)

    def say(folder, where=NEVER, *more):
        return killed(kills.say, given(folder, *more), log, *where)

    made.mkdir()
    whole.mkdir()
    assert say(whole) == 0, log.read_text()[-3000:]
    expected = held(whole)
    assert sorted(expected) == sorted((first, second))

    assert say(made, between) == -signal.SIGKILL, log.read_text()[-3000:]
    assert (made / first).read_bytes() == expected[first]
    assert not (made / second).exists()
    (made / second).write_text("mine")
    assert say(made) == 2
    assert f"{second} exists already" in log.read_text()
    assert (made / second).read_text() == "mine"
    (made / second).unlink()
    (made / first).write_text("mine")
    assert say(made) == 2
    assert (made / first).read_text() == "mine"
    (made / first).write_bytes(expected[first])

    assert say(made, between) == -signal.SIGKILL
    assert say(made, late) == -signal.SIGKILL
    assert {name: held(made)[name] for name in expected} == expected
    assert say(made) == 0, log.read_text()[-3000:]
    assert held(made) == expected
    assert sorted(path.name for path in made.iterdir()) == sorted(expected)

    assert say(made) == 2
    assert say(made, between, "--overwrite") == -signal.SIGKILL
    assert say(made, NEVER, "--overwrite") == 0
    assert held(made) == expected
    assert sorted(path.name for path in made.iterdir()) == sorted(expected)
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_interrupted_between_its_two_files_goes_on(verb, run, dev, tmp_path):
    words, (first, option, second), (between, _) = VERBS[verb]
    words = [dev if word == "DEV" else word for word in words]
    log, given = tmp_path / "log", (verb, run, *words, "--out", tmp_path / first, option, tmp_path / second)
    assert killed(kills.say, given, log, *between, signal.SIGINT) == 4
    assert "un the same command again" in log.read_text()
    assert killed(kills.say, given, log, *NEVER) == 0, log.read_text()[-3000:]
    assert not (tmp_path / f"{first}.parts").exists()
