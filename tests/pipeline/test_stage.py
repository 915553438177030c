"""A stage computes what is missing, names its task once in an error, and leaves the workers alone where it stands."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from distributed import Client

from influence.engine.dispatch import Workers, complete
from influence.engine.stage import Series, Stage, Task
from influence.errors import DataError


@dataclass
class Squares(Stage):
    folder: Path
    wrong: int = -1
    name = "squares"
    key = "k"

    def cut(self):
        return [Task(self, n, f"square {n}", n, self.folder / f"{n}.safetensors", self.key) for n in range(4)]

    def run(self, task, session):
        if task.number == self.wrong:
            raise DataError("7 is no number")
        task.save({"square": torch.tensor(task.span**2)})


@dataclass
class Sum(Stage):
    squares: Squares
    name = "sum"
    key = "k"
    here = True

    def cut(self):
        return [Task(self, 0, "the sum", None, self.squares.folder / "sum.safetensors", self.key)]

    def run(self, task, session):
        task.save({"sum": sum(square.load()["square"] for square in self.squares.cut())})

    def merge(self):
        for square in self.squares.cut():
            square.remove()


class Total(Series):
    """The sum, whose squares are removed once it stands."""

    name = "total"

    def __init__(self, folder):
        self.stages = (Squares(folder), Sum(Squares(folder)))

    def stands(self):
        return self.stages[1].stands()


@pytest.fixture
def here():
    """Workers that are this process."""
    with Workers(nullcontext) as workers:
        yield workers


def test_missing_is_the_cut_without_what_is_committed(tmp_path, here):
    stage = Squares(tmp_path)
    assert [task.number for task in stage.missing()] == [0, 1, 2, 3]
    stage.cut()[2].save({"square": torch.tensor(4)})
    (tmp_path / "3.safetensors").write_bytes(b"without a record")
    assert [task.number for task in stage.missing()] == [0, 1, 3]


def test_an_error_names_its_task_once_and_what_was_done_before_it_stays(tmp_path, here):
    with pytest.raises(DataError, match=r"^square 2: 7 is no number$"):
        complete([Squares(tmp_path, wrong=2)], here)
    assert [task.number for task in Squares(tmp_path).missing()] == [2, 3]


def test_a_stage_that_is_resumed_computes_only_what_is_missing_and_counts_the_rest_as_done(tmp_path, here):
    with pytest.raises(DataError):
        complete([Squares(tmp_path, wrong=2)], here)
    before, steps = (tmp_path / "0.safetensors").stat().st_mtime_ns, []
    complete([Squares(tmp_path)], here, lambda step: steps.append((step.stage, step.done, step.total)))
    assert steps == [("squares", 2, 4), ("squares", 3, 4), ("squares", 4, 4)]
    assert (tmp_path / "0.safetensors").stat().st_mtime_ns == before
    assert torch.equal(Squares(tmp_path).cut()[3].load()["square"], torch.tensor(9))


def test_a_series_that_stands_needs_none_of_its_parts_and_no_workers(tmp_path, here):
    complete([Total(tmp_path)], here)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sum.json", "sum.safetensors"]
    assert Total(tmp_path).missing() == [] or Total(tmp_path).stands()
    steps = []
    with Workers(lambda: pytest.fail("workers are started")) as nobody:
        complete([Total(tmp_path)], nobody, lambda step: steps.append((step.stage, step.done, step.total)))
    assert steps == [("total", 5, 5)]


def test_workers_are_gone_before_the_coordinator_does_what_comes_last(tmp_path, here):
    seen = []

    class Seen(Workers):
        def dismiss(self):
            seen.append([path.name for path in sorted(tmp_path.glob("*.safetensors"))])
            super().dismiss()

    with Seen(nullcontext) as workers:
        complete([Total(tmp_path)], workers)
    assert seen == [[f"{n}.safetensors" for n in range(4)]]


def test_a_worker_does_a_task_as_this_process_does(tmp_path, thread_client: Client):
    (tmp_path / "there").mkdir()
    with Workers(lambda: nullcontext(thread_client)) as workers:
        complete([Squares(tmp_path / "there")], workers)
        with pytest.raises(DataError, match=r"^square 1: 7 is no number$"):
            complete([Squares(tmp_path, wrong=1)], workers)
    with Workers(nullcontext) as workers:
        complete([Squares(tmp_path)], workers)
    for here, there in zip(Squares(tmp_path).cut(), Squares(tmp_path / "there").cut(), strict=True):
        assert here.file.read_bytes() == there.file.read_bytes()


def test_what_only_the_coordinator_needs_is_not_sent(tmp_path):
    class Local(Squares):
        local = ("heavy",)

    stage = Local(tmp_path)
    stage.heavy = list(range(1000))
    assert set(stage.__getstate__()) == {"folder", "wrong"}
