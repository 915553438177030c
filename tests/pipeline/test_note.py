"""A build says what it is at in a file that anyone may read, and takes it away when it ends."""

import pytest

from influence.artifacts.lock import lock_folder
from influence.cli.tables import status_table
from influence.engine.note import NOTE, Note, read_note
from influence.engine.progress import Progress
from influence.stages.build import build_run
from influence.stages.status import status


def test_rates_and_time_left_count_what_this_build_did(tmp_path):
    seconds = iter(range(100))
    with lock_folder(tmp_path):
        note = Note(tmp_path, None, clock=lambda: float(next(seconds)))
        stage = Progress("capture", 100, note, done=40)
        assert read_note(tmp_path) == {
            **{"stage": "capture", "done": 40, "total": 100, "retried": 0, "workers_lost": 0},
            **{"rows_per_second": None, "tokens_per_second": None, "seconds_left": None},
        }
        stage._began -= 10.0
        stage.tried_again()
        stage.lost_workers(2)
        for _ in range(20):
            stage.finished(rows=5, tokens=50)
        found = read_note(tmp_path)
        assert found is not None
        assert (found["done"], found["retried"], found["workers_lost"]) == (60, 1, 2)
        assert found["rows_per_second"] == pytest.approx(10, rel=0.1)
        assert found["tokens_per_second"] == pytest.approx(100, rel=0.1)
        assert found["seconds_left"] == pytest.approx(20, rel=0.1)


def test_a_note_is_written_once_a_second_and_at_both_ends_of_a_stage(tmp_path):
    now = [0.0]
    with lock_folder(tmp_path):
        note = Note(tmp_path, None, clock=lambda: now[0])
        stage, seen = Progress("capture", 9, note), []
        for moment in (0.1, 0.2, 1.5, 1.6, 2.4, 2.6, 2.7, 2.8, 2.9):
            now[0] = moment
            stage.finished()
            found = read_note(tmp_path)
            seen.append(found and found["done"])
    assert seen == [0, 0, 3, 3, 3, 6, 6, 6, 9]


def test_a_status_shows_the_note_while_the_build_runs_and_nothing_after(configured, in_process, tmp_path):
    seen = []

    def look(step):
        if step.stage == "capture" and step.done == 2:
            seen.append(status(run_dir))

    run_dir = tmp_path / "run"
    build_run(configured(), run_dir, look)
    assert seen[0]["building"]["stage"] == "capture"
    assert (seen[0]["building"]["total"], seen[0]["complete"]) == (5, False)
    assert any("capture" in str(cell) for cell in status_table(seen[0]).columns[1]._cells)
    assert status(run_dir)["building"] is None
    assert not (run_dir / NOTE).exists()


def test_the_note_of_a_build_that_was_killed_is_not_believed(tmp_path):
    (tmp_path / NOTE).write_text('{"stage": "capture"}')
    assert read_note(tmp_path) is None
