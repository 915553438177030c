"""`influence query`: which rows made the model say this?"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.cli.options import RunArgument, WhereOption
from influence.cli.queries import from_file, from_flags
from influence.cli.streams import drawn, put, put_text, show, tell, told
from influence.errors import QueryError
from influence.remote.place import check_local

if TYPE_CHECKING:
    from influence.query.hits import Hits


class HitsForm(StrEnum):
    """The forms of an answer."""

    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"
    html = "html"


def query(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option(help="What the model was given.")] = None,
    completion: Annotated[str | None, typer.Option(help="What it said: the part that is asked about.")] = None,
    text: Annotated[str | None, typer.Option(help="Ask about a whole text instead; a classifier's text.")] = None,
    label: Annotated[str | None, typer.Option(help="With --text, for a classifier: the class it gave.")] = None,
    queries: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="JSON Lines with a query a line, from a file or stdin.")
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="What it might have said instead: ask what made it say the one, not the other.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Rows on each side; 10 unless there are fewer.")] = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact", help="Score the index's proposals again from whole gradients; as the recipe says."
        ),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="With exact scores: the proposals of each side; as the recipe says.")
    ] = None,
    where: WhereOption = None,
    form: Annotated[
        HitsForm | None,
        typer.Option("--format", help="A table unless asked otherwise; with --out, as the file's suffix says."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the answers to a file.")] = None,
) -> None:
    """Show the rows that promote a completion most, and those that oppose it most."""
    chosen = _form(form, out)
    if queries is None:
        asked = [from_flags(prompt, completion, text, label, contrast)]
    elif any(flag is not None for flag in (prompt, completion, text, label, contrast)):
        raise QueryError(
            "Both --queries and --prompt, --completion, --contrast, --text or --label are given: keep one."
        )
    else:
        asked = from_file(queries)
    import influence.run
    from influence.pipeline.progress import ProgressBar

    tell("Asking the model …", "dim")
    with influence.run.open(run) as opened, ProgressBar(told()) as bar:
        answers = opened.query_many(asked, k=k, exact=exact, candidates=candidates, where=where, progress=bar)
    _deliver(answers, chosen, out)


def _form(form: HitsForm | None, out: Path | None) -> HitsForm:
    """Return the form that was asked for, by flag or by the file's suffix, refusing what can't be written."""
    if out is not None:
        check_local(out, "answers")
    if out is not None and not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} doesn't exist; make it, or write the answers somewhere else.")
    if form is None and out is not None:
        suffix = out.suffix.lower().removeprefix(".")
        if suffix not in {*HitsForm} - {HitsForm.table}:
            raise QueryError(f"--out {out}: its suffix names no format. Add --format {'|'.join(HitsForm)}.")
        form = HitsForm(suffix)
    form = form or HitsForm.table
    if form is HitsForm.parquet and out is None and sys.stdout.isatty():
        raise QueryError("Parquet is binary and standard output is a terminal. Add --out hits.parquet, or redirect it.")
    return form


def _deliver(answers: "list[Hits]", form: HitsForm, out: Path | None) -> None:
    from influence.cli.tables import answer_tables
    from influence.query.hits import encode, write
    from influence.store.partial import write_whole

    if form in (HitsForm.csv, HitsForm.parquet):
        tell(f"Scores in {answers[0].unit}. {answers[0].sign}", "dim")
        for answer in answers:
            if answer.caution is not None:
                tell(f"{answer.query.id}: {answer.caution}", "yellow")
    if form is HitsForm.table:
        tables = [table for answer in answers for table in answer_tables(answer)]
        if out is None:
            show(*tables)
        else:
            write_whole(out, drawn(*tables, plain=True).encode())
    elif out is not None:
        write(answers, form.value, out)
    elif form is HitsForm.parquet:
        put(encode(answers, form.value))
    else:
        put_text(encode(answers, form.value), escapes=form in (HitsForm.json, HitsForm.jsonl))
    if out is not None:
        tell(f"Wrote {out}.", "green")
