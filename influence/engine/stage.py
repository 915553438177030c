"""Work that is cut into tasks: what a stage is, which of its tasks are missing, and what a worker does with one.

A stage holds its own mathematics: how its work is cut, what one task computes, what becomes of the artifacts. All else
is written once: who does the tasks and when (`dispatch`), retries and lost workers (`submit`), rows that end their
worker (`poison`), rows that raise (`quarantine`), progress (`progress`), and the name of a task in its error (here).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from index.errors import VectorIndexError
from influence.artifacts.tensors import load_tensors, remove_tensors, save_tensors, saved_for
from influence.engine.progress import Progress
from influence.engine.threads import torch_threads
from influence.errors import InfluenceError

S = TypeVar("S", bound="Stage")

During = Literal["tokenising", "computing"]
Dead = Mapping[int, During]
"""Positions of the rows that end their worker's process, and what it was doing with each."""
NO_DEAD: Dead = {}


@dataclass(frozen=True)
class Task(Generic[S]):
    """One piece of a stage's work: small, picklable, and sent to a worker together with its stage.

    Attributes:
        stage: Whose `run` does it.
        number: Its place in the cut.
        name: For messages: `shard-00007 (rows 448 to 511)`.
        span: What it covers; the stage knows the type.
        path: The artifact that it leaves; None where its result is returned and nothing is kept.
        key: The fingerprint that the artifact carries.
        rows: The row at each position, where a row can be to blame.
    """

    stage: S
    number: int
    name: str
    span: Any = None
    path: Path | None = None
    key: str = ""
    rows: Sequence[int] = ()

    @property
    def file(self) -> Path:
        """The artifact's path, of a task that leaves one."""
        assert self.path is not None, f"{self.name} leaves no file"
        return self.path

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Commit tensors as the artifact; see `save_tensors`."""
        save_tensors(self.file, tensors, self.key)

    def load(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Read the artifact's tensors; see `load_tensors`."""
        return load_tensors(self.file, self.key, names)

    def remove(self) -> None:
        """Remove the artifact, once it is merged."""
        remove_tensors(self.file)


class Stage:
    """A stage of work. Subclasses are dataclasses of what a worker needs to know; `cut` and `run` are theirs.

    Attributes:
        name: What progress and `influence status` call it.
        here: Its tasks are done by the calling process, after the workers have gone where nobody needs them later.
        threads: Torch's while a task runs; 0 leaves the number as it is.
        single: It has one task, whose name would tell nothing in front of an error.
        local: Names of attributes that are not sent to workers.
    """

    name: str
    here: bool = False
    threads: int = 0
    single: bool = False
    local: ClassVar[tuple[str, ...]] = ()

    @property
    def key(self) -> str:
        """The fingerprint of the inputs and settings that decide what the stage leaves."""
        raise NotImplementedError

    def cut(self) -> "Sequence[Task]":
        """Return all tasks, in order: a pure function of the stage, whoever does them and whatever is done already."""
        raise NotImplementedError

    def run(self, task: "Task", session: Any) -> Any:
        """Do one task: write its artifact, or return its result. `session` is what `session` opened."""
        raise NotImplementedError

    def session(self, task: "Task") -> AbstractContextManager[Any]:
        """Open what a task needs and later tasks can use again, in the process that does it."""
        return nullcontext()

    def done(self, task: "Task") -> bool:
        """Whether a task's artifact is committed."""
        return task.path is not None and saved_for(task.path, task.key)

    def stands(self) -> bool:
        """Whether what the stage is for is there, so that no task of it is needed, whatever became of the artifacts."""
        return all(self.done(task) for task in self.cut())

    def missing(self) -> "list[Task]":
        """Return the tasks that are to be done: cut − done, and none where the stage stands."""
        absent = [task for task in self.cut() if not self.done(task)]
        return [] if not absent or self.stands() else absent

    def take(self, result: Any, progress: Progress) -> None:
        """Take the result of a finished task, in the coordinator."""
        progress.finished()

    def merge(self) -> None:
        """Make of the artifacts what the stage is for, in the coordinator, once no task is missing."""

    def each(self, do: "Callable[[Stage], None]") -> None:
        """Do the stages that this one consists of, in order: itself."""
        do(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker is sent."""
        return {name: value for name, value in self.__dict__.items() if name not in self.local}


class RowStage(Stage):
    """A stage whose tasks compute over rows, some of which may end the worker's process; see `poison`."""

    @property
    def room(self) -> int:
        """Rows that may still be set aside; read for each task that was given up."""
        return 0

    def run(self, task: Task, session: Any, dead: Dead = NO_DEAD, tokenised: Callable[[], None] = lambda: None) -> Any:
        """Do a task without its dead rows.

        Args:
            task: The task.
            session: Of the process.
            dead: Rows that end their worker: not touched, and set aside.
            tokenised: Called between the tokeniser and the model.
        """
        raise NotImplementedError

    def rehearse(self, task: Task, session: Any, positions: Sequence[int], tokenised: Callable[[], None]) -> None:
        """Compute what `run` computes of the rows at some positions, and keep nothing."""
        raise NotImplementedError


class Series(Stage):
    """Stages done one after another under one name."""

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """In order."""
        raise NotImplementedError

    def cut(self) -> list[Task]:
        """Return the tasks of all of them."""
        return [task for stage in self.stages for task in stage.cut()]

    def stands(self) -> bool:
        """Whether each stands."""
        return all(stage.stands() for stage in self.stages)

    def missing(self) -> list[Task]:
        """Return what each lacks now."""
        return [task for stage in self.stages for task in stage.missing()]

    def each(self, do: Callable[[Stage], None]) -> None:
        """Do each."""
        for stage in self.stages:
            stage.each(do)


def perform(task: Task) -> Any:
    """Do a task; the entry point of a worker."""
    with task.stage.session(task) as session, named(task), threads_of(task):
        return task.stage.run(task, session)


def threads_of(task: Task) -> AbstractContextManager[None]:
    """Compute with the number of threads that a task's stage sets."""
    return torch_threads(task.stage.threads) if task.stage.threads else nullcontext()


@contextmanager
def named(task: Task) -> Iterator[None]:
    """Put a task's name in front of what goes wrong in it."""
    try:
        yield
    except (InfluenceError, VectorIndexError) as error:
        if task.stage.single:
            raise
        raise type(error)(f"{task.name}: {error}") from error
    except Exception as error:
        error.add_note(f"This happened in {task.name}.")
        raise
