"""`influence query`: the training rows behind one output."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from influence.artifacts.partial import check_replaceable
from influence.artifacts.place import check_local
from influence.cli.options import RawCsvOption, RawOption, RunArgument, TrustOption, WhereOption, check_raw_csv
from influence.cli.queries import count_queries, from_file, from_flags, from_messages
from influence.cli.streams import drawn, put, put_text, show, tell, told
from influence.errors import InfluenceError, QueryError

if TYPE_CHECKING:
    from influence.api import Run
    from influence.data.queries import Query
    from influence.engine.progress import Report
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
    prompt: Annotated[str | None, typer.Option(help="The text before the completion.")] = None,
    completion: Annotated[str | None, typer.Option(help="The output that is measured.")] = None,
    text: Annotated[str | None, typer.Option(help="A whole text to measure, or a classifier's text.")] = None,
    label: Annotated[
        str | None, typer.Option(help="With --text, for a classifier: the class that is measured.")
    ] = None,
    queries: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="JSON Lines, one query per line; - reads standard input.")
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="Another output: measure the difference of the two log-probabilities.")
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="A chat as JSON: a list of messages, or an object with messages and tools; - reads standard input.",
        ),
    ] = None,
    raw: RawOption = False,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, help="Number of rows on each side. Default: 10, or all if there are fewer."),
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact",
            help="Re-rank the index's candidates with exact scores. Default: as set in the recipe.",
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, help="With exact scores: number of candidates of each side. Default: as set in the recipe."
        ),
    ] = None,
    where: WhereOption = None,
    form: Annotated[
        HitsForm | None,
        typer.Option("--format", help="Output format. Default: table; with --out, the format of the suffix."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the answers to a file.")] = None,
    raw_csv: RawCsvOption = False,
    trust: TrustOption = False,
) -> None:
    """Print the rows that promote an output most and the rows that oppose it most."""
    chosen = _form(form, out)
    check_raw_csv(raw_csv, chosen.value)
    flags = (prompt, completion, text, label)
    if queries is not None and any(flag is not None for flag in (*flags, contrast, messages)):
        raise QueryError(
            "Both --queries and --prompt, --completion, --contrast, --text, --label or --messages are given: keep one."
        )
    if messages is not None and any(flag is not None for flag in flags):
        raise QueryError("--messages is the whole query: remove --prompt, --completion, --text and --label.")
    asked: Query | None = None
    if messages is not None:
        asked = from_messages(messages, contrast)
    elif queries is None:
        asked = from_flags(prompt, completion, text, label, contrast)
    import influence.api
    from influence.data.queries import as_example
    from influence.engine.progress import ProgressBar

    if label is not None and asked is not None:
        # A label that was given is meant, also where the model has no use for one: then it is refused.
        asked = as_example(asked)
    tell("Computing …", "dim")
    with influence.api.open(run, trust=trust) as opened:
        if out is not None:
            _check_unread(out, opened, (queries, messages))
        if asked is not None:
            with ProgressBar(told()) as bar:
                answers = opened.query_many(
                    [asked], k=k, exact=exact, candidates=candidates, where=where, raw=raw, progress=bar
                )
            _deliver(answers, chosen, out, raw_csv)
            return
        examples = from_file(str(queries), opened.query_form.asking(raw=raw))
        # Answers that are printed to a terminal show how far it is; a bar would be drawn over them.
        with ProgressBar(told()) if out is not None or not sys.stdout.isatty() else nullcontext() as bar:
            answers = opened.query_each(examples, k=k, exact=exact, candidates=candidates, where=where, progress=bar)
            _deliver(_counted(answers, count_queries(str(queries)), bar), chosen, out, raw_csv)


def _check_unread(out: Path, run: "Run", asked: "Iterable[str | None]") -> None:
    """Refuse to replace what is read: the queries, the training data, a file of the run or of its model."""
    from influence.artifacts.outfile import same_file
    from influence.data.dataset import locate

    if not out.exists():
        return
    with suppress(InfluenceError):  # Data that aren't there can't be replaced.
        asked = (*asked, *locate(run.config.data)[1])
    folders = (run.path, run.config.model.path, run.config.model.tokeniser)
    read = next((file for file in asked if file and file != "-" and same_file(out, Path(file))), None)
    inside = (Path(str(each)).expanduser().resolve() for each in folders if each is not None)
    place = next((folder for folder in inside if out.resolve().is_relative_to(folder)), None)
    if read is not None or place is not None:
        what = "what is read here" if read is not None else f"a file of {place}"
        raise QueryError(f"{out} is {what}, and answers would take its place. Name another file.")


def _counted(answers: "Iterable[Hits]", total: int | None, report: "Report | None") -> "Iterator[Hits]":
    """Yield answers and report each; where nobody knows how many there will be, no total."""
    from influence.engine.progress import Progress

    stage = None if total is None else Progress("queries", total, report)
    for answer in answers:
        yield answer
        if stage is not None:
            stage.finished()


def _form(form: HitsForm | None, out: Path | None) -> HitsForm:
    """Return the form that was asked for, by flag or by the file's suffix, refusing what can't be written."""
    if out is not None:
        check_local(out, "answers")
    if out is not None and not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} does not exist. Create it, or choose another path.")
    if out is not None and not out.is_dir():
        check_replaceable(out)
    if form is None and out is not None:
        suffix = out.suffix.lower().removeprefix(".")
        if suffix not in {*HitsForm} - {HitsForm.table}:
            raise QueryError(f"--out {out}: its suffix names no format. Add --format {'|'.join(HitsForm)}.")
        form = HitsForm(suffix)
    form = form or HitsForm.table
    if form is HitsForm.parquet and out is None and sys.stdout.isatty():
        raise QueryError("Parquet is binary and standard output is a terminal. Add --out hits.parquet, or redirect it.")
    return form


def _deliver(answers: "Iterable[Hits]", form: HitsForm, out: Path | None, raw_csv: bool) -> None:
    from influence.artifacts.partial import write_pieces
    from influence.cli.tables import answer_tables
    from influence.query.hits import encoded, write

    # The first answer first: what is wrong with the first queries leaves no file and no half of a document.
    answers = iter(answers)
    first = list(islice(answers, 1))
    if form in (HitsForm.csv, HitsForm.parquet) and first:
        tell(f"Scores in {first[0].unit}. {first[0].sign}", "dim")
    answers = chain(first, answers)
    if form in (HitsForm.csv, HitsForm.parquet):
        answers = _cautioned(answers)
    if form is HitsForm.table:
        tables = (answer_tables(answer) for answer in answers)
        if out is None:
            for table in tables:
                show(*table)
        else:
            write_pieces(out, (drawn(*table, plain=True).encode() for table in tables))
    elif out is not None:
        write(answers, form.value, out, raw_csv=raw_csv)
    else:
        for piece in encoded(answers, form.value, raw_csv=raw_csv):
            if form is HitsForm.parquet:
                put(piece)
            else:
                put_text(piece, escapes=form in (HitsForm.json, HitsForm.jsonl))
    if out is not None:
        tell(f"Wrote {out}.", "green")


def _cautioned(answers: "Iterable[Hits]") -> "Iterator[Hits]":
    """Yield answers, saying beside the data what their scores are not."""
    for answer in answers:
        if answer.caution is not None:
            tell(f"{answer.query.id}: {answer.caution}", "yellow")
        yield answer
