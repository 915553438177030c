"""What every verb has in common: help, usage errors, exit codes, streams."""

import logging
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import influence.stages.status as standing
from influence.cli import ending, streams

VERBS = ("demo", "doctor", "plan", "build", "status", "query")


def test_help_lists_the_verbs_and_the_exit_codes(cli):
    ended = cli("--help")
    assert ended.code == 0
    assert all(verb in ended.out for verb in VERBS)
    assert "4 incomplete" in ended.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_no_option_without_a_word_about_it(cli, verb):
    ended = cli(verb, "-h")
    assert ended.code == 0
    assert f"influence {verb}" in ended.out


def test_help_pays_for_no_library_of_the_work():
    program = (
        "import sys\nfrom influence.cli.commands import app\n"
        "heavy = {'torch', 'transformers', 'distributed', 'faiss', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_distributions(cli):
    from importlib.metadata import version

    assert cli("--version").out == f"influence {version('influence')}\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["buidl"], "No such command"),
        (["build", "--out", "x"], "--config"),
        (["build", "-c", "run.yaml"], "--out"),
        (["query"], "RUN"),
        (["query", "x", "-k", "0"], "Invalid value for '-k'"),
        (["query", "x", "--format", "xml"], "'xml' is not one of"),
        (["status", "x", "--format", "csv"], "'csv' is not one of"),
        (["build", "-c", "run.yaml", "--out", "x", "--workers", "-1"], "Invalid value for '--workers'"),
    ],
)
def test_a_usage_error_ends_with_2_and_says_what_is_wrong(cli, argv, told):
    ended = cli(*argv)
    assert ended.code == 2
    assert told in ended.told
    assert ended.out == ""


def test_our_own_defect_shows_the_traceback_and_asks_for_a_report(cli, monkeypatch, tmp_path):
    def broken(_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(standing, "status", broken)
    ended = cli("status", tmp_path)
    assert ended.code == ending.DEFECT
    assert "ZeroDivisionError: division by zero" in ended.err
    assert "Traceback" in ended.err
    assert "Please report it" in ended.told
    assert ended.out == ""


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 4, "Run the same command again"),
        (OSError(28, "No space left on device", "/full/file"), 4, "the disk under /full/file is full"),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
        (MemoryError(), 2, "out of memory"),
    ],
)
def test_what_the_system_refuses_is_told_in_a_line(cli, monkeypatch, tmp_path, error, code, told):
    def refused(_):
        raise error

    monkeypatch.setattr(standing, "status", refused)
    ended = cli("status", tmp_path)
    assert ended.code == code
    assert told in ended.told
    assert "Traceback" not in ended.err


@given(st.text(st.characters(categories=("L", "N", "P", "Cc", "Cf", "Cs", "Zl", "Zp", "Zs"))))
def test_nothing_that_is_printed_can_steer_a_terminal(text):
    shown = streams.printable(text)
    assert len(shown) == len(text)
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} - {"\t", "\n"}
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def test_square_brackets_in_data_are_no_markup():
    assert "[red]list[/red] [link=x]" in streams.drawn(streams.plain("[red]list[/red]\n[link=x]"), plain=True)


def test_log_lines_go_to_standard_error_once_and_only_while_a_verb_runs(cli, monkeypatch, tmp_path):
    def telling(_):
        logging.getLogger("influence.api").warning("row \x1b[31m7")
        raise KeyboardInterrupt

    monkeypatch.setattr(standing, "status", telling)
    ended = cli("status", tmp_path)
    assert ended.err.count("warning: row \ufffd[31m7") == 1
    assert not any(isinstance(handler, streams._Handler) for handler in logging.getLogger("influence").handlers)
