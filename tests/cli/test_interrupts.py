"""Ctrl-C at the first and the last moment of a process, in processes of their own."""

import subprocess
import sys
import textwrap

import pytest

AT_IMPORT = textwrap.dedent("""
    import os, signal, sys
    from influence.cli.main import main

    class Interrupting:
        name = sys.argv.pop(1)

        def find_spec(self, name, path=None, target=None):
            if name == self.name:
                os.kill(os.getpid(), signal.SIGINT)

    sys.meta_path.insert(0, Interrupting())
    main()
""")

IN_THE_MIDDLE = textwrap.dedent("""
    import sys
    from pathlib import Path
    from influence.cli.ending import ended
    import typer

    def work():
        import loaded, threading
        threading.Event().wait(60)  # Python hears of a signal between two steps
        Path("after").touch()

    try:
        ended(work)()
    except typer.Exit as done:
        sys.exit(done.exit_code)
""")

LOADED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
total = sum(range(100))
open("whole", "w").close()
"""

AT_THE_END = textwrap.dedent("""
    import atexit, os, signal
    from influence.cli.main import main

    # Called in the opposite order: this one last, when Python has nothing left to do but to unload.
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT) if WHEN == "last" else None)
    try:
        main()
    finally:
        if WHEN == "first":
            os.kill(os.getpid(), signal.SIGINT)
""")


def run(program, *argv, folder):
    return subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, cwd=folder, timeout=120
    )


@pytest.mark.parametrize("module", ["influence.cli.commands", "typer", "influence.cli.export", "influence.api"])
def test_ctrl_c_during_the_first_imports_ends_with_4_and_a_sentence(tmp_path, module):
    done = run(AT_IMPORT, module, "build", "-c", "run.yaml", "--out", "run", folder=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.strip() == "Interrupted. Run the same command again."
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_during_an_import_in_the_middle_of_the_work_waits_until_the_module_is_loaded(tmp_path):
    (tmp_path / "loaded.py").write_text(LOADED)
    done = run(IN_THE_MIDDLE, folder=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "Run the same command again to resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "whole").exists()
    assert not (tmp_path / "after").exists()


@pytest.mark.parametrize("when", ["first", "last"])
def test_ctrl_c_after_the_last_word_changes_nothing(tmp_path, when):
    argv = ["score", "nowhere", "--out", "s.parquet"]
    done = run(AT_THE_END.replace("WHEN", repr(when)), *argv, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: Nothing to score for: give --queries FILE, or --self for each row's influence on itself."
    ]
