"""`influence demo`: build a corpus, train a small model, and trace planted facts to their training rows."""

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from influence.artifacts.place import check_local
from influence.cli.streams import show, tell, told
from influence.errors import QueryError

if TYPE_CHECKING:
    from influence.demo.questions import Answer
    from influence.demo.story import Story
    from influence.engine.progress import Report, Step

DEFAULT_OUT = Path("runs/demo")
SHOWN = 5
"""Rows of each side in the terminal; the page has all."""


def demo(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of corpus, model, run and page. Existing results are reused. Default: runs/demo."
        ),
    ] = None,
) -> None:
    """Train a small model on Python's documentation and planted facts, and find the rows that taught it the facts."""
    if context.invoked_subcommand is not None:
        if out is not None:
            verb = context.invoked_subcommand
            raise QueryError(f"--out {out} is before {verb}, which has an --out of its own: put it after {verb}.")
        return
    out = out or DEFAULT_OUT
    check_local(out, "the demo")
    tell("Reading a corpus, training a model, building a run: under four minutes on two cores.")
    from influence.demo import story
    from influence.engine.progress import ProgressBar

    with ProgressBar(told()) as bar:
        found = story.tell(out, progress=Announced(bar))
    for answer in found.answers:
        _show(answer)
    _sum_up(found)
    asked = found.planted[0].question
    tell(
        f"Query it: influence query {quote(str(found.run))} --prompt {quote(asked.prompt)} "
        f"--completion {quote(asked.completion)}"
    )


class Announced:
    """Shows every step as a bar; where there is no terminal to draw one, tells each stage as it begins."""

    def __init__(self, bar: "Report") -> None:
        self.bar = bar
        self.begun: set[str] = set()

    def __call__(self, step: "Step") -> None:
        """Handle one step."""
        if step.stage not in self.begun and not told().is_terminal:
            tell(f"{step.stage}: {step.total:,} step" + ("" if step.total == 1 else "s"))
        self.begun.add(step.stage)
        self.bar(step)


def _show(answer: "Answer") -> None:
    """Print one answer, the first rows of each side."""
    from rich.text import Text

    from influence.cli.tables import answer_tables
    from influence.demo.page import mark, note

    hits = answer.hits
    shown = replace(hits, promoting=hits.promoting[:SHOWN], opposing=hits.opposing[:SHOWN])
    marks = {hit.row: mark(hit.id, answer.question.name) for hit in (*shown.promoting, *shown.opposing)}
    heading = Text.assemble((f"\n{answer.question.name}", "bold cyan"), f" – {note(answer)}")
    show(heading, *answer_tables(shown, {row: text for row, text in marks.items() if text}, method=False))


def _sum_up(found: "Story") -> None:
    """Print what was traced, fact by fact and on the whole, and where the page is."""
    from rich.text import Text

    from influence.cli.tables import traced_table
    from influence.demo.questions import DEPTH

    whole = Text.assemble(
        (f"\nrecall@{DEPTH} over {len(found.planted)} planted facts: ", "bold"),
        (f"{found.recall:.0%}", "bold green"),
        f"   BM25 (words only): {found.bm25:.0%}   random rows: {found.random:.1%}",
    )
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in found.seconds.items())
    hits = found.answers[0].hits
    foot = Text(f"{found.rows:,} rows; {parts}.\n{hits.recipe}.\nPage with all answers: {found.page}")
    show(whole, traced_table(found.planted), foot)
