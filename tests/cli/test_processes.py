"""Real processes: pipes, Ctrl-C and two builds at once."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

import influence.api as runs
from tests.cli.conftest import ASKED, clean, until

pytestmark = pytest.mark.slow

# Ctrl-C once the shards are captured, and again while the cluster closes, which would then take for ever.
IMPATIENT = textwrap.dedent("""
    import os, signal, sys, time
    import psutil
    from pathlib import Path
    from influence.cli.main import main
    from influence.stages import build
    from influence.engine import local

    def closing(cluster):
        workers = [str(child.pid) for child in psutil.Process().children(recursive=True)]
        Path(sys.argv[1]).write_text(" ".join(workers))
        os.killpg(0, signal.SIGINT)
        time.sleep(600)

    local._let_dead_be_replaced = closing
    build.report_zero_rows = lambda *_: os.killpg(0, signal.SIGINT)
    main(sys.argv[2:])
""")

COMMAND = [sys.executable, "-m", "influence.cli.main"]


def test_answers_for_a_pipe_are_json_alone(built, tmp_path):
    query = json.dumps({"prompt": ASKED[1], "completion": ASKED[3]})
    influence = shlex.join([*COMMAND, "query", str(built), "--queries", "-", "--format", "json", "-k", "2"])
    line = (
        f"set -o pipefail; echo {shlex.quote(query)} | {influence} 2>{tmp_path / 'err'} | {sys.executable} -m json.tool"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["promoting"]) == 2
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_a_selection_ends_without_a_list_of_objects_that_duckdb_leaves_behind(built, tmp_path):
    (tmp_path / "target.jsonl").write_text('{"text": "Bread is baked before dawn."}\n')
    flags = ["--target", str(tmp_path / "target.jsonl"), "--top", "3", "--out", str(tmp_path / "chosen.jsonl")]
    done = subprocess.run(
        [*COMMAND, "select", str(built), *flags, "--no-bm25"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "nanobind" not in done.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly(built):
    reading, writing = os.pipe()
    with subprocess.Popen([*COMMAND, "status", str(built)], stdout=writing, stderr=subprocess.PIPE) as running:
        os.close(writing)
        os.close(reading)
        told = running.communicate(timeout=120)[1]
    assert (running.returncode, told) == (0, b"")


def test_a_build_in_progress_refuses_a_second_and_ends_at_ctrl_c_with_what_it_has(
    cli, run_file, written, tmp_path, in_process
):
    data = written(*({"text": f"A list keeps its items in order, {row} of them."} for row in range(2000)))
    path, run_dir = run_file(data=data, recipe={"name": "graddot", "projection": {"p": 4, "q": 4}}), tmp_path / "run"
    argv = ["build", "-c", str(path), "--out", str(run_dir)]
    running = subprocess.Popen(
        [*COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until(lambda: (run_dir / "rows" / "shard-00000.json").exists() or running.poll() is not None)
        second = cli(*argv)
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
    assert second.code == 2
    assert f"is being written by process {running.pid}" in second.told
    assert (running.returncode, out) == (4, ""), err
    assert "Traceback" not in err
    assert "Interrupted." in err
    assert "of 250 shards stand" in err
    assert clean(run_dir)
    standing = runs.status(run_dir)
    assert 1 <= standing["shards_done"] < standing["shards"]
    assert cli(*argv).code == 0
    assert runs.status(run_dir)["complete"]


def test_a_second_ctrl_c_ends_a_build_at_once_and_the_same_command_goes_on(cli, run_file, tmp_path, in_process):
    workers, run_dir = tmp_path / "workers", tmp_path / "run"
    argv = ["build", "-c", str(run_file()), "--out", str(run_dir)]
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, str(workers), *argv],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert done.stderr.splitlines()[-1] == "Ended at once. Run the same command again to resume."
    assert not any(word in done.stderr for word in ("Traceback", "Error", "distributed", "leaked", "Interrupted"))
    left = [psutil.Process(int(pid)) for pid in workers.read_text().split() if psutil.pid_exists(int(pid))]
    assert psutil.wait_procs(left, timeout=60)[1] == []
    assert cli(*argv).code == 0
    assert runs.status(run_dir)["complete"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("status RUN >&-", 2, "Standard output is closed, so the answer can't be printed"),
        ("status --help >/dev/full", 4, "standard output can't be written to: No space left on device"),
        ("status RUN >OUT 2>/dev/full <&-", 0, ""),
    ],
)
def test_standard_streams_that_are_closed_or_full_end_in_no_traceback(built, tmp_path, command, code, said):
    line = command.replace("RUN", str(built)).replace("OUT", str(tmp_path / "out"))
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(COMMAND)} {line}"], stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
    if code == 0:
        assert "complete" in (tmp_path / "out").read_text()
