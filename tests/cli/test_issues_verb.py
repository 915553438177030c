"""`influence issues` and its kin on bad input and a full disk: exit code, message, nothing lost, no litter."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest

import influence
from influence.artifacts.digest import sha256
from influence.artifacts.lock import lock_folder
from influence.artifacts.outfile import MARK, parts_folder
from influence.errors import InfluenceError
from tests.cli.conftest import clean
from tests.diagnose.exported import table_of

QUICK = ("--checks", "empty,zero_gradient,near_duplicate")
DEV = b'{"text": "The river was named after a cartographer.", "body": "b"}\n'


@pytest.fixture(scope="module")
def own(built, tmp_path_factory):
    """A copy of the run, in whose folder neighbours may be kept."""
    return shutil.copytree(built, tmp_path_factory.mktemp("own") / "run")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "issues.parquet"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checks", "mislabelled"], "Checks that do apply: near_duplicate, outlier, empty, zero_gradient"),
        (["--checks", "spelling"], "There is no check 'spelling'; there are mislabelled"),
        (["--checks", ""], "No check is named. Name some of mislabelled"),
        (["--checks", " , "], "No check is named"),
        (["--set", "empty.loud=1"], "--set empty.loud: there is no such setting; this check has none."),
        (["--target", ""], "--target is empty"),
        (["--eval", "gone.jsonl"], "There is nothing at gone.jsonl"),
    ],
)
def test_what_can_t_be_asked_ends_with_code_2_and_leaves_nothing(words, said, cli, built, out):
    ended = cli("issues", built, *words, "--out", out)
    assert ended.code == 2
    assert said in ended.told
    assert names_in(out.parent) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dev.jsonl", b'{"body": "a"}\n', "Columns found: 'body'. Expected 'text', as in the training data; or"),
        ("dev.csv", b"body,topic\na,b\n", "Columns found: 'body', 'topic'. Expected 'text'"),
        ("dev.jsonl", b"", "is empty"),
        ("dev.jsonl", b"\n \n", "is empty"),
        ("dev.jsonl", b'{"text": null}\n', "line 1: 'text' is null"),
        ("dev.jsonl", b'{"text": "\xff"}\n', "line 1: byte 11 of the line, 0xff, is not valid UTF-8"),
        ("dev.jsonl", b'{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}\n', "were both given the id 'x'"),
        ("dev.jsonl.gz", b"\x1f\x8b", "is compressed, and rows are read from plain files. Unpack it"),
        ("dev.jsonl", DEV + b'{"text": ""}\n' * 12, "dev.jsonl, row 1 (counted from 0)"),
    ],
)
def test_an_evaluation_file_that_can_t_be_read_is_named_with_what_was_found(
    name, content, said, cli, built, out, tmp_path
):
    (tmp_path / name).write_bytes(content)
    ended = cli("issues", built, "--eval", tmp_path / name, "--checks", "harmful", "--out", out)
    assert ended.code == 2
    assert said in ended.told
    assert str(tmp_path / name) in ended.told
    assert names_in(tmp_path) == [name]


def test_an_evaluation_file_needs_none_of_the_columns_that_only_say_where_a_row_is_from(cli, own, out, tmp_path):
    (tmp_path / "dev.jsonl").write_bytes(b"\xef\xbb\xbf" + DEV.replace(b"\n", b"\r\n") + b"\n" + DEV.rstrip())
    ended = cli("issues", own, "--eval", tmp_path / "dev.jsonl", "--checks", "leak", "--out", out)
    assert ended.code == 0, ended.err
    assert pq.read_table(out).num_rows == 40


@pytest.mark.parametrize("what", ["scores", "link", "folder"])
def test_only_a_table_of_issues_is_replaced_by_one(what, cli, built, tmp_path):
    shard, out = next((built / "rows").glob("*.parquet")), tmp_path / "x.parquet"
    if what == "folder":
        out.mkdir()
    elif what == "link":
        out.symlink_to(shard)
    else:
        shutil.copy(shard, out)
    before = shard.read_bytes()
    ended = cli("issues", built, "--checks", "empty", "--out", out, "--overwrite")
    assert ended.code == 2
    assert ("is a folder" if what == "folder" else "isn't replaced, since it may be anything else") in ended.told
    assert shard.read_bytes() == before
    assert names_in(tmp_path) == ["x.parquet"]


@pytest.mark.parametrize(
    ("verb", "way"),
    [
        *((verb, way) for verb in ("groups", "select") for way in ("the queries", "the data", "a hard link")),
        ("groups", "the figure"),
    ],
)
def test_what_is_read_is_never_written_over(verb, way, cli, built, corpus_file, tmp_path):
    dev, link = tmp_path / "dev.jsonl", tmp_path / "link.jsonl"
    dev.write_bytes(DEV)
    os.link(corpus_file, link)
    out = {"the queries": dev, "the data": corpus_file, "a hard link": link, "the figure": tmp_path / "x.html"}[way]
    before = [path.read_bytes() for path in (dev, corpus_file)]
    words = ["--queries", dev, "--format", "json"] if verb == "groups" else ["--target", dev, "--top", 3]
    if way == "the figure":
        words += ["--figure", out]
    ended = cli(verb, built, *words, "--out", out, "--overwrite")
    assert ended.code == 2
    assert ("--out writes too" if way == "the figure" else "is what is read here") in ended.told
    assert [path.read_bytes() for path in (dev, corpus_file)] == before
    assert names_in(tmp_path) == ["dev.jsonl", "link.jsonl"]


def test_a_full_disk_ends_with_4_and_the_same_commands_go_on_once_there_is_room(cli, own, small_disk, tmp_path):
    folder, make_room = small_disk
    with influence.open(own) as run:
        table = table_of(run, tmp_path / "table.parquet", drop=range(30))
    commands = [
        ("issues", own, *QUICK, "--out", folder / "issues.parquet"),
        ("export", own, "--drop", table, "--out", folder / "clean.jsonl"),
    ]
    filler = folder / "filler"
    for left in (0, 4096, 40_000):
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
        filler.write_bytes(b"x" * max(0, free - left) if free < 2**20 else b"")
        for command in commands if left < 40_000 else commands[:1]:
            ended = cli(*command)
            assert ended.code == 4, ended.err
            assert "un the same command again" in ended.told
            assert "Exception ignored" not in ended.err
            assert clean(folder)
            assert not command[-1].exists()
        filler.unlink()
    make_room()
    for command in commands:
        assert cli(*command).code == 0
    assert names_in(folder) == ["clean.decisions.parquet", "clean.jsonl", "issues.parquet"]


def test_what_a_killed_call_left_is_cleared_and_another_file_of_that_name_stays(cli, own, out):
    assert cli("issues", own, *QUICK, "--out", out).code == 0
    whole, folder = out.read_bytes(), parts_folder(out)
    folder.mkdir()
    (folder / MARK).write_text(sha256(out))
    for path in (out.with_name("issues.parquet.7-abc.partial"), folder / "x.safetensors.7-abc.partial"):
        path.write_bytes(b"half")
    assert cli("issues", own, *QUICK, "--out", out).code == 0
    assert (names_in(out.parent), out.read_bytes()) == (["issues.parquet"], whole)
    folder.mkdir()
    (folder / MARK).write_text(sha256(out))
    ended = cli("issues", own, "--checks", "empty", "--out", out)
    assert ended.code == 2
    assert "exists already" in ended.told
    assert out.read_bytes() == whole


def test_another_process_at_the_file_is_named_and_nothing_of_it_is_removed(cli, own, out):
    with lock_folder(parts_folder(out)):
        left = parts_folder(out) / "x.partial"
        left.write_bytes(b"half")
        ended = cli("issues", own, *QUICK, "--out", out)
        assert left.exists()
    assert ended.code == 2
    assert "is being written already" in ended.told


def test_a_run_of_rows_whose_ids_are_their_contents_may_repeat_them(cli, run_file, written, out, tmp_path, in_process):
    data = written(
        {"text": "A list keeps its items."}, {"text": "A set keeps each once."}, {"text": "A list keeps its items."}
    )
    run = tmp_path / "run"
    assert cli("build", "-c", run_file(data=data), "--out", run).code == 0
    assert cli("issues", run, *QUICK, "--out", out).code == 0
    assert cli("export", run, "--drop", out, "--out", tmp_path / "clean.jsonl").code == 0
    assert [json.loads(line)["text"] for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == [
        "A list keeps its items.",
        "A set keeps each once.",
    ]


ASK = [{"text": "The river was named after a cartographer."}]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run, out: run.issues([]), "No check is named"),
        (lambda run, out: run.issues("spelling"), "There is no check 'spelling'"),
        (lambda run, out: run.issues("mislabelled"), "Checks that do apply: near_duplicate"),
        (lambda run, out: run.issues(evaluation=7), "the evaluation: found int. Expected a file, or a list of queries"),
        (lambda run, out: run.issues(settings="empty.loud=1"), "this check has none"),
        (lambda run, out: run.groups(ASK, sets="topic"), "Sets are parted by a column of a file"),
        (lambda run, out: run.groups(ASK, replicates=101), "replicates: Input should be a multiple of 2 (found 101)"),
        (lambda run, out: run.groups(ASK, level=95), "level: Input should be less than 1 (found 95)"),
        (lambda run, out: run.groups(ASK, out=out / "no" / "groups.csv"), "doesn't exist; make it"),
        (lambda run, out: run.select(ASK, 3, out / "a.jsonl", by=""), "by: String should have at least 1 character"),
        (lambda run, out: run.select(ASK, 0.05, out / "a.jsonl"), "--top '0.05': expected a share, as 5%"),
        (lambda run, out: run.export(out / "a.jsonl", out / "gone.parquet"), "There is no file"),
        (lambda run, out: run.compare(str(run.path), ASK), "to compare with. Expected a run, as influence.open(path)"),
        (lambda run, out: run.compare(run, ASK[0]), "Expected a list of queries"),
        (lambda run, out: run.compare(run, "queries.jsonl"), "Expected a list of queries"),
    ],
)
def test_python_says_of_wrong_arguments_what_the_command_line_says(call, said, built, tmp_path):
    with influence.open(built) as run, pytest.raises(InfluenceError) as told:
        call(run, tmp_path)
    assert said in " ".join(str(told.value).split())
    assert names_in(tmp_path) == []


def test_checks_are_named_one_by_one_or_in_a_text(own):
    with influence.open(own) as run:
        frames = [run.issues(names) for names in ("empty, zero_gradient", ["empty", "zero_gradient"])]
    assert list(frames[0].columns) == list(frames[1].columns)
    assert "is_zero_gradient" in frames[0].columns
