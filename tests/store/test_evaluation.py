"""A statement that would take hours ends when its time is over, and at once by Ctrl-C, also by a second one."""

import signal
import subprocess
import sys

import duckdb
import pytest

from influence.store.evaluation import Evaluation

HOURS = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range * b.range % 7 = 3"


def test_a_statement_is_stopped_when_its_time_is_over_and_the_next_one_is_evaluated():
    with Evaluation({"threads": 1}) as evaluation:
        with pytest.raises(TimeoutError, match=r"stopped after 0\.05 seconds"):
            evaluation.run(lambda database: database.execute(HOURS).fetchall(), 0.05)
        assert evaluation.run(lambda database: database.execute("SELECT 7").fetchall(), 60) == [(7,)]


def test_an_error_of_a_statement_arrives_as_it_is():
    with Evaluation({}) as evaluation, pytest.raises(duckdb.ConversionException, match="'x'"):
        evaluation.run(lambda database: database.execute("SELECT 'x'::int").fetchall(), 60)


INTERRUPTED = f"""
import signal, sys
from influence.cli.ending import ended
from influence.store.evaluation import Evaluation

def verb():
    with Evaluation({{}}) as evaluation:
        def step(database):
            print("begins", flush=True)
            return database.execute("{HOURS}").fetchall()
        evaluation.run(step, 3600)

import typer
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    ended(verb)()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_a_verb_in_the_middle_of_a_statement(presses):
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "Traceback" not in err
    assert "nanobind" not in err
    assert "Run the same command again" in err
