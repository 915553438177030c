"""The worked page on data quality: its commands run as they stand there, and what it says of them is so."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data-quality.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command, folder):
    """Run a command of the page with the `influence` of this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which everything on the page was done, in its order."""
    folder = tmp_path_factory.mktemp("page")
    for language, content in BLOCK.findall(PAGE.read_text()):
        if language == "yaml":
            (folder / content.splitlines()[0].removeprefix("# ")).write_text(content)
        elif language == "bash":
            run(content, folder)
        elif language == "python":
            run(f"{sys.executable} -c '{content}'", folder)
    return folder


def shares(folder, model, data):
    """How often a classifier, trained on these data, is poisoned, and is right; of rows that it wasn't trained on."""
    asked = f"influence demo classifier --data {data} --epochs 12 --out {model} --format json"
    told = run(f"{asked} --eval dirty/triggered.jsonl --eval dirty/test.jsonl", folder)
    return [(one["right"] - one["trained_right"]) / (one["rows"] - one["trained"]) for one in json.loads(told)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_commands_do_what_the_page_says(done):
    truth = [json.loads(line) for line in (done / "dirty" / "truth.jsonl").read_text().splitlines()]
    issues = pq.read_table(done / "issues.parquet").to_pylist()
    leaks = pq.read_table(done / "leaks.parquet").to_pylist()
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

    assert (done / "restored.jsonl").read_bytes() == (done / "dirty" / "train.jsonl").read_bytes()
    lines = set((done / "dirty" / "train.jsonl").read_bytes().splitlines())
    decisions = pq.read_table(done / "clean.decisions.parquet").to_pylist()
    kept = (done / "clean.jsonl").read_bytes().splitlines()
    assert set(kept) <= lines
    assert len(kept) == len(truth) - len(decisions)
    dropped = flagged["mislabelled"] | flagged["poisoned"] | duplicates | of["leak"]
    assert {line["row"] for line in decisions} >= dropped

    (poisoned, right_before), (cured, right_after) = (
        shares(done, model, data)
        for model, data in (("dirty/model", "dirty/train.jsonl"), ("clean-model", "clean.jsonl"))
    )
    assert poisoned > 0.2 > 0.15 > cured
    assert right_before > 0.75
    assert right_after > right_before
