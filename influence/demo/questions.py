"""What the demo asks, what is known about the right answer, and what came back."""

from dataclasses import dataclass

from influence.demo.facts import Fact
from influence.query.hits import Hits

DEPTH = 10
"""The k of recall@k, and how many rows an answer shows on each side."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query of the demo and, as it is known, its right answer.

    Attributes:
        name: Short, for tables and headings.
        prompt: What the model is given.
        completion: What it says.
        relevant: Ids of the rows that hold the answer.
        wrong: Another completion, which a model that learnt the fact finds less likely; None for real text.
    """

    name: str
    prompt: str
    completion: str
    relevant: tuple[str, ...]
    wrong: str | None = None

    @classmethod
    def of(cls, fact: Fact) -> "Question":
        """Return the question that asks for a planted fact."""
        return cls(fact.name, fact.prompt, fact.completion, fact.ids, fact.wrong)


REAL = (
    Question("statistics.median", "Return the median (middle", " value) of numeric data.", ("statistics.median",)),
    Question("calendar.isleap", "Return True for leap years, False for", " non-leap years.", ("calendar.isleap",)),
    Question("shutil.rmtree", "Recursively delete a", " directory tree.", ("shutil.rmtree",)),
)
"""Questions about real text: the beginning of a docstring whose row anyone can look up."""


@dataclass(frozen=True)
class Answer:
    """What came back for one question.

    Attributes:
        question: What was asked.
        hits: The rows found.
        found: How many of the relevant rows are among the first `DEPTH` promoting ones.
        bm25: How many of them are among BM25's first `DEPTH`, for prompt and completion together.
        wrong: log p of the wrong completion, in nats; None for real text.
    """

    question: Question
    hits: Hits
    found: int
    bm25: int
    wrong: float | None = None

    @property
    def planted(self) -> bool:
        """Whether the question asks for a planted fact."""
        return self.question.wrong is not None

    @property
    def relevant(self) -> int:
        """How many rows hold the answer."""
        return len(self.question.relevant)

    @property
    def preferred(self) -> bool:
        """Whether the model finds the right completion likelier than the wrong one; true for real text."""
        return self.wrong is None or self.margin > 0

    @property
    def margin(self) -> float:
        """By how many nats the model finds the right completion of a planted fact likelier than the wrong one."""
        measured = self.hits.query.log_likelihood
        assert measured is not None, "the demo's recipe asks the model"
        assert self.wrong is not None, "real text has no wrong completion"
        return measured - self.wrong


__all__ = ["DEPTH", "REAL", "Answer", "Question"]
