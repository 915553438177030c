"""The worked page on data quality: its commands run as they stand there, and what it says of them is so.

Each runs in a process of its own, whose server has imported everything and only forks; see `tests.forkserver`.
"""

import json
import os
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from influence.cli.main import main
from tests.forkserver import PROCESSES

PAGE = Path(__file__).parents[2] / "docs" / "data-quality.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def as_verb(words):
    """Run a line of a shell that is a command of ours; there are no others on the page."""
    assert words[0] == "influence", words
    main(words[1:])


def as_script(content):
    exec(compile(content, str(PAGE), "exec"), {"__name__": "__main__"})


def called(call, given, folder, printed):
    """Call in a folder, with standard output and standard error in files; lines aren't broken at a terminal's width."""
    os.chdir(folder)
    os.environ["COLUMNS"] = "200"
    for stream, suffix in ((1, ".out"), (2, ".err")):
        with printed.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), stream)
    call(given)


def run(call, given, folder, printed):
    """Call in a process of its own and return what it printed."""
    process = PROCESSES.Process(target=called, args=(call, given, folder, printed))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{given}\n{printed.with_suffix('.err').read_text()[-3000:]}"
    return printed.with_suffix(".out").read_text()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which everything on the page was done, in its order, and what each line of a shell printed."""
    folder, logs, printed = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("printed"), {}
    for block, (language, content) in enumerate(BLOCK.findall(PAGE.read_text())):
        if language == "yaml":
            (folder / content.splitlines()[0].removeprefix("# ")).write_text(content)
        elif language == "python":
            run(as_script, content, folder, logs / f"{block}")
        elif language == "bash":
            for number, line in enumerate(content.splitlines()):
                words = shlex.split(line)
                printed[line] = run(as_verb, words, folder, logs / f"{block}-{number}")
    return folder, printed


def shares(printed, model):
    """How often, by the page's own command, a classifier is poisoned and is right; of rows it wasn't trained on."""
    (told,) = (said for line, said in printed.items() if line.endswith(f"--out {model}"))
    cells = [line.split() for line in told.splitlines()]
    by_file = {words[0]: float(words[-1].removesuffix("%")) / 100 for words in cells if words[-1].endswith("%")}
    return by_file["dirty/triggered.jsonl"], by_file["dirty/test.jsonl"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_commands_do_what_the_page_says(done):
    folder, printed = done
    truth = [json.loads(line) for line in (folder / "dirty" / "truth.jsonl").read_text().splitlines()]
    issues = pq.read_table(folder / "issues.parquet").to_pylist()
    leaks = pq.read_table(folder / "leaks.parquet").to_pylist()
    of = {fault: {line["row"] for line in truth if line["fault"] == fault} for fault in {one["fault"] for one in truth}}
    flagged = {name: {line["row"] for line in issues if line[f"is_{name}"]} for name in ("mislabelled", "poisoned")}
    assert of["poison"] <= flagged["poisoned"]
    assert len(flagged["poisoned"]) <= 2 * len(of["poison"])
    wrong = of["wrong_label"] | of["poison"]
    right = flagged["mislabelled"] & wrong
    assert len(right) > 0.6 * len(flagged["mislabelled"])
    assert len(right) > 0.25 * len(wrong)
    assert of["leak"] <= {line["row"] for line in leaks if line["is_leak"]}

    original = {line["id"]: line["row"] for line in truth}
    copies = [line for line in truth if line["fault"] in ("exact_copy", "edited_copy")]
    duplicates = {line["row"] for line in issues if line["is_near_duplicate"]}
    found = [line for line in copies if {line["row"], original[line["of"]]} & duplicates]
    assert len(found) >= 0.9 * len(copies)

    assert (folder / "restored.jsonl").read_bytes() == (folder / "dirty" / "train.jsonl").read_bytes()
    lines = set((folder / "dirty" / "train.jsonl").read_bytes().splitlines())
    decisions = pq.read_table(folder / "clean.decisions.parquet").to_pylist()
    kept = (folder / "clean.jsonl").read_bytes().splitlines()
    assert set(kept) <= lines
    assert len(kept) == len(truth) - len(decisions)
    dropped = flagged["mislabelled"] | flagged["poisoned"] | duplicates | of["leak"]
    assert {line["row"] for line in decisions} >= dropped

    (poisoned, right_before), (cured, right_after) = (
        shares(printed, model) for model in ("dirty/model", "clean-model")
    )
    assert poisoned > 0.2 > 0.15 > cured
    assert right_before > 0.75
    assert right_after > right_before
