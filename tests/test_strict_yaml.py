"""A run file from a stranger means one thing, takes no more memory than it looks, and its faults have a line."""

import pytest

from influence.config import dump_config, load_config
from influence.errors import ConfigError
from influence.strict_yaml import parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (BOMB, r"run.yaml:2: not valid YAML: the alias \*a is not supported"),
        ("a: &a [*a]", r"the alias \*a is not supported"),
        ("base: {x: 1}\na:\n  <<: {x: 2}\n  x: 3", r"run.yaml:3: .*merge keys \(<<\) are not read"),
        ("[" * 33 + "]" * 33, "more than 32 levels"),
        ("{a: " * 100_000, "more than 32 levels"),
        ("- " * 5_000 + "x", "more than 32 levels"),
        ("a:\n  - {b: 1, c: 2}\n  - {b: 1, b: 2}", r"run.yaml:3: .*the key 'b' is given twice"),
        ("[[{1: a, 1: b}]]", "the key 1 is given twice"),
        ("? [a, b]\n: 1", "unhashable type"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: !!int x", "invalid literal for int"),
        ("a: !!timestamp 2020-13-45", "month must be in 1..12"),
        (f"a: {'9' * 5_000}", "4300"),
        ("a: 1\n---\na: 2", "another document"),
        ("x" * (2**20 + 1), "has 1,048,577 characters; a run file has at most 1,048,576"),
    ],
)
def test_a_run_file_that_means_two_things_or_grows_is_refused_by_its_line(source, reason):
    with pytest.raises(ConfigError, match=f"(?s){reason}"):
        parse_yaml(source, "run.yaml")


def test_keys_have_their_lines():
    found, lines = parse_yaml("a:\n  b: 1\n  c: {d: [x, {e: 2}]}\n", "run.yaml")
    assert found == {"a": {"b": 1, "c": {"d": ["x", {"e": 2}]}}}
    assert lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", "d"): 3}


def test_a_value_of_set_is_read_as_strictly(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: m}\ndata: {path: d}\n")
    with pytest.raises(ConfigError, match=r"--set 'data\.columns=\{text: a, text: b\}'.*the key 'text' is given twice"):
        load_config(path, ["data.columns={text: a, text: b}"])


def test_what_a_build_writes_down_has_no_aliases(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {path: /m}\ndata: {path: /d}\ncluster: {kind: slurm, job: {directives: [a], prologue: [a]}}\n"
    )
    config = load_config(path)
    assert parse_yaml(dump_config(config), "run.yaml")[0]["cluster"]["job"]["prologue"] == ["a"]


def test_a_file_of_gigabytes_in_a_run_files_place_is_not_read(tmp_path):
    path = tmp_path / "run.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ConfigError, match=r"run\.yaml has more than 4,194,304 bytes"):
        load_config(path)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("12:30:00", "12:30:00"),
        ("0100", "0100"),
        ("2020-01-01", "2020-01-01"),
        ("1:30.5", "1:30.5"),
        ("1_000", 1000),
        ("-5", -5),
        ("0", 0),
        ("0x10", 16),
        ("1.5e-3", 0.0015),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
    ],
)
def test_a_plain_value_is_what_it_looks_like(written, read):
    found, _ = parse_yaml(f"key: {written}", "a file")
    assert found == {"key": read}
    assert type(found["key"]) is type(read)
