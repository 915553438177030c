"""The demo's page: what was planted, what was traced, and every answer."""

from pathlib import Path
from typing import TYPE_CHECKING

from influence.artifacts.partial import write_whole
from influence.demo.facts import DISTRACTOR, PLANTED
from influence.demo.questions import DEPTH, Answer
from influence.query.page import Section, nats, render_page

if TYPE_CHECKING:
    from influence.demo.story import Story

TITLE = "Which training examples made the model say this?"
INTRO = (
    "A small language model was trained from scratch on the documentation of this machine's Python and on "
    "{facts} facts about things that do not exist, each stated in a few rows in different words. Below are the answers "
    "for every fact and for some real documentation. The rows that state the answer should come first.\n\n"
    "Rows marked “planted” state the fact in question. A “distractor” is also planted: it shares words with "
    "a question and states something else. So do the rows of other facts, marked with the fact's name."
)


def write_page(story: "Story", path: Path) -> None:
    """Write the page of a finished demo as one self-contained HTML file."""
    preferred = sum(answer.preferred for answer in story.planted)
    figures = {
        f"planted rows in the first {DEPTH}": f"{story.recall:.0%}",
        f"BM25 (words only), first {DEPTH}": f"{story.bm25:.0%}",
        f"{DEPTH} random rows": f"{story.random:.1%}",
        "facts preferred to a wrong answer": f"{preferred} of {len(story.planted)}",
    }
    facts = {
        "Rows": f"{story.rows:,}",
        "Corpus": "docstrings of the standard library's public modules, classes and functions, and planted sentences",
        "Run": str(story.run),
    }
    page = render_page(
        TITLE,
        INTRO.format(facts=len(story.planted)),
        [_section(answer) for answer in story.answers],
        figures=figures,
        facts=facts,
    )
    write_whole(path, page.encode())


def note(answer: Answer) -> str:
    """Return what is known about an answer, in a sentence or two."""
    if not answer.planted:
        where = "is" if answer.found == answer.relevant else "is not"
        return (
            f"The docstring of {answer.question.name} {where} among the first {DEPTH} promoting rows "
            f"({'found' if answer.bm25 else 'not found'} by BM25)."
        )
    wrong = (answer.question.wrong or "").strip()
    return (
        f"{answer.found} of {answer.relevant} planted rows are among the first {DEPTH} promoting rows; BM25 finds "
        f"{answer.bm25}. A wrong answer, “{wrong}”, is {nats(abs(answer.margin))} nats "
        f"{'less' if answer.preferred else 'more'} likely."
    )


def mark(identifier: str, question: str) -> str | None:
    """Return the word or two shown beside a row: its part in the experiment, or None for real text."""
    kind, _, rest = identifier.partition("/")
    fact = rest.rpartition("/")[0]
    if kind == DISTRACTOR:
        return "distractor"
    if kind == PLANTED:
        return "planted" if fact == question else f"planted: {fact}"
    return None


def _section(answer: Answer) -> Section:
    hits = answer.hits
    marks = {hit.row: mark(hit.id, answer.question.name) for hit in (*hits.promoting, *hits.opposing)}
    heading = "planted fact" if answer.planted else "real documentation"
    return Section(
        hits,
        heading=f"{answer.question.name} ({heading})",
        note=note(answer),
        marks={row: text for row, text in marks.items() if text},
    )


__all__ = ["mark", "note", "write_page"]
