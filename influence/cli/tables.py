"""What is printed as a table. Every text in it is somebody's data: no markup, no control characters.

A score never stands without its unit and what its sign means.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from influence.cli.streams import plain, printable
from influence.query.hits import Hit, Hits, snippet
from influence.query.page import Scale, nats, probability

if TYPE_CHECKING:
    from influence.capture.cut import Estimate
    from influence.curvature.spectrum import Spectrum
    from influence.demo.questions import Answer
    from influence.doctor import Check
    from influence.estimate.forecast import Plan
    from influence.estimate.query_cost import QueryCost

SNIPPET = 160
"""Characters of a row that a table shows."""
SCORED = re.compile("(⟦[^⟧]*⟧)")
"""What `influence.doctor.rows.marked` puts brackets around."""
MARKS = {"pass": Text("pass", "green"), "fail": Text("FAIL", "bold red"), "note": Text("note", "yellow")}


def answer_tables(hits: Hits, marks: Mapping[int, str] | None = None, *, method: bool = True) -> list[RenderableType]:
    """Return one answer: the question, both sides, and what the numbers mean.

    Args:
        hits: The answer.
        marks: Row to a word shown before its snippet, such as `planted`.
        method: Name the recipe and the run below.
    """
    scale = Scale.of(hits)
    covered = f"; {hits.coverage.brief}" if hits.coverage else ""
    below = f"\n{hits.recipe}, run {hits.fingerprint}{covered}" if method else ""
    foot = f"Scores in {hits.unit}. {hits.sign}{below}"
    sides = [("Promoting", "green", hits.promoting), ("Opposing", "red", hits.opposing)]
    if hits.baseline is not None:
        sides = [("Most alike", "cyan", hits.promoting)]
    return [
        _question(hits),
        *(table for side in sides for table in _side(*side, scale, marks or {})),
        *([] if hits.caution is None else [Text(hits.caution, "yellow")]),
        Padding(Text(foot, "dim"), (0, 0, 1, 0)),
    ]


def status_table(found: Mapping[str, Any]) -> Table:
    """Return how far a run is, as `influence.api.status` found it."""
    share = found["shards_done"] / found["shards"] if found["shards"] else 0.0
    shards = _counted(found["shards"], "shard")
    state = Text("complete", "green") if found["complete"] else Text("incomplete: run the same build again", "yellow")
    return _facts(
        {
            "run": found["path"],
            "state": state,
            **_under_way(found["building"]),
            "rows": f"{found['rows_done']:,} of {found['rows']:,} captured ({share:.0%} of {shards})",
            "columns": f"{found['dims']:,}",
            "scored tokens" if found["dims"] else "words": f"{found['tokens']:,}",
            "zero rows": f"{found['zero_rows']:,} (nothing to differentiate or compare; they score 0)",
            **_quarantined(found["quarantined"]),
            "on disk": f"{size(found['disk'])}, {size(found['bytes'])} of it rows",
            "factors": found["factors"],
            "curvature": found["curvature"],
            "index": found["index"],
            **({"coverage": found["coverage"]["summary"]} if found["coverage"] else {}),
            "recipe": found["recipe"],
            "fingerprint": found["fingerprint"],
        }
    )


def _under_way(note: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the line of a status that says what a build is at, if there is one."""
    if note is None:
        return {}
    said = [f"{note['stage']}: {note['done']:,} of {_counted(note['total'], 'task')}"]
    if note["rows_per_second"]:
        said.append(f"{note['rows_per_second']:,.0f} rows/s, {note['tokens_per_second'] or 0:,.0f} tokens/s")
    if note["seconds_left"] is not None:
        said.append(f"{timedelta(seconds=round(note['seconds_left']))} left in this stage")
    if note["retried"]:
        said.append(f"{_counted(note['retried'], 'task')} retried")
    if note["workers_lost"]:
        said.append(f"{_counted(note['workers_lost'], 'worker')} lost")
    return {"building": "; ".join(said)}


def _quarantined(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the line of a status that names the rows that could not be captured, if there are any."""
    if not rows:
        return {}
    named = ", ".join(f"{row['row']} ({row['id']})" for row in rows[:5]) + (", …" if len(rows) > 5 else "")
    return {"quarantined": f"{len(rows):,} could not be captured and score 0: {named}; the first: {rows[0]['error']}"}


def spectra_tables(found: Mapping[str, Sequence["Spectrum"]]) -> list[RenderableType]:
    """Return each curvature's modules: eigenvalues, damping, and what of trace and directions lies under it."""
    tables: list[RenderableType] = []
    for name, spectra in found.items():
        table = grid(
            name, "largest eigenvalue", "mean", "damping", "of the trace under it", "of the directions", "Σ Λ/(Λ + λ)"
        )
        for spectrum in spectra:
            numbers = (f"{value:.3g}" for value in (spectrum.largest, spectrum.mean, spectrum.damping))
            shares = (spectrum.trace_share_under_damping, spectrum.directions_under_damping)
            told = (*numbers, *(f"{share:.0%}" for share in shares), f"{spectrum.dimension:,.0f}")
            table.add_row(plain(spectrum.module), *told)
        tables.append(table)
    return tables


def plan_tables(plan: "Plan", hours: Mapping[int, float], queries: int) -> list[RenderableType]:
    """Return what a build would take, `hours` by number of workers, and then one query and so many."""
    needs, probed = plan.estimate, plan.probed
    read = "tokens" if probed.modules else "words"
    speed = f"{probed.tokens_per_second:,.0f} {read}/s a worker" if probed.tokens_per_second else "not measured"
    times = grid("workers", "from start to end")
    for workers, value in hours.items():
        times.add_row(f"{workers:,}" + (" (planned)" if workers == plan.workers else ""), duration(value))
    return [
        _facts(
            {
                "rows": f"{needs.rows:,} in {_counted(needs.shards, 'shard')} of at most {needs.rows_per_shard:,}",
                "columns": f"{needs.dims:,} of {_counted(len(probed.modules), 'layer')}" if probed.modules else "none",
                **({"coverage": probed.coverage.summary} if probed.coverage else {}),
                f"{read} a row": f"{probed.tokens_per_row:,.0f}",
                "computes in": f"{probed.dtype} on {probed.device_name}" if probed.modules else "words, with no model",
                "speed": speed,
                "work": _work(plan),
                "index": plan.index,
                "on disk": f"{size(needs.disk)}: rows {size(needs.disk_rows)}, "
                f"factors {size(needs.disk_factors)}, curvature {size(needs.disk_curvature)}, "
                f"index {size(needs.disk_index)}; plus the rows' texts",
            }
        ),
        _memory(needs, texts=not probed.modules),
        times,
        *([_queries(plan.query, queries)] if plan.query else []),
        Text(
            f"Estimated from {plan.measuring:.1f} s of measurement of the stages, in this process or on one worker of "
            "a cluster: several workers of one machine may each be slower. No run was started.",
            "dim",
        ),
    ]


def _queries(cost: "QueryCost", queries: int) -> Table:
    """Return what queries in one call would take."""
    table = grid("queries in one call", "time", "memory", "content")
    rows = f"the whole gradients of {cost.candidates:,} rows each" if cost.candidates else "index only, no exact scores"
    held = f"gradients of {cost.together:,} at once"
    for count in sorted({1, queries}):
        seconds, memory = duration(cost.seconds(count) / 3600), size(cost.memory(count))
        what = f"{rows}; {cost.opening:.0f} s to open" if count == 1 else held
        table.add_row(f"{count:,}", seconds, memory, what)
    return table


def _work(plan: "Plan") -> str:
    """Return what the workers are busy with, stage by stage, and in all."""
    unit = "GPU-hours" if plan.probed.device == "cuda" else "worker-hours"
    stages = ", ".join(f"{stage} {duration(seconds / 3600)}" for stage, seconds in plan.work.items())
    return f"{plan.worker_hours:.3g} {unit}: {stages}; {plan.start:.0f} s to start and to end"


def _memory(needs: "Estimate", *, texts: bool) -> Table:
    """Return what each stage holds; of a run of texts in the one process that makes it."""
    table = grid("stage", "memory", "content")
    if texts:
        table.add_row("capture", size(needs.memory_capture), "a shard's texts; plus Python")
        table.add_row("index", size(needs.memory_index), "the words of all texts; a query maps the index")
        return table
    table.add_row(
        "capture",
        size(needs.memory_model + needs.memory_capture),
        "each worker: model and two shards; plus Python, torch and a batch's activations",
    )
    if needs.memory_factors:
        table.add_row("factors", size(needs.memory_model + needs.memory_factors), "each worker, and the coordinator")
    table.add_row("curvature", size(needs.memory_curvature), "each worker that sums, and the coordinator")
    table.add_row("index", size(needs.memory_index), "the coordinator")
    return table


def checks_table(checks: Sequence["Check"]) -> Table:
    """Return what the doctor found, each remedy under its check."""
    table = grid("check", "", "found", "expected")
    for check in checks:
        table.add_row(plain(check.name), MARKS[check.verdict], plain(check.found), plain(check.expected))
        if check.remedy and check.verdict != "pass":
            table.add_row("", "", Text("→ ", "bold") + plain(check.remedy), "")
    return table


def shown_rows(checks: Sequence["Check"]) -> list[RenderableType]:
    """Return the texts that checks show: what is scored between brackets, and bold where there is colour."""
    texts: list[RenderableType] = []
    for check in checks:
        if check.shown is None:
            continue
        text = Text(f"\n{check.name} ({plain(check.expected).plain}):\n", "dim")
        for piece in SCORED.split(printable(check.shown)):
            text.append(piece, "bold green" if SCORED.fullmatch(piece) else "")
        texts.append(text)
    return texts


def traced_table(answers: "Sequence[Answer]") -> Table:
    """Return how many of each planted fact's rows were traced, beside BM25."""
    table = grid("fact", "traced", "BM25", "preferred to a wrong answer")
    for answer in answers:
        traced = f"{answer.found} of {answer.relevant}"
        table.add_row(plain(answer.question.name), traced, str(answer.bm25), "yes" if answer.preferred else "no")
    return table


def size(count: float) -> str:
    """Return a number of bytes as people read it: `3.2 GB`, decimal."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def duration(hours: float) -> str:
    """Return hours as people read them: `40 s`, `12 min`, `3.5 h`, `12 days`."""
    if hours == float("inf"):
        return "unknown"
    for limit, scale, unit in ((1 / 60, 3600, "s"), (1, 60, "min"), (72, 1, "h")):
        if hours < limit:
            value = hours * scale
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{hours / 24:,.0f} days"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _question(hits: Hits) -> Text:
    query = hits.query
    asked = Text("\n")
    if query.prompt:
        asked.append_text(plain(query.prompt)).append(" → ", "dim")
    asked.append_text(Text(plain(query.completion).plain, "bold"))
    if query.log_likelihood is not None:
        chance = probability(query.log_likelihood)
        asked.append(f"\nlog-likelihood {nats(query.log_likelihood)} nats" + (f" ({chance})" if chance else ""), "dim")
    if query.contrast is not None and query.contrast_log_likelihood is not None:
        asked.append(f"\nrather than {plain(query.contrast).plain}: {nats(query.contrast_log_likelihood)} nats", "dim")
    if query.turns is not None:
        which = "the assistant's turn is" if query.turns == 1 else f"{query.turns} turns of the assistant are"
        asked.append(f"\na chat, rendered by the model's chat template: {which} measured", "dim")
    return asked.append_text(Text(" · query ", "dim")).append_text(plain(query.id))


def _side(title: str, colour: str, hits: Sequence[Hit], scale: Scale, marks: Mapping[int, str]) -> list[RenderableType]:
    if not hits:
        return [Text(f"{title}: no row", colour)]
    table = Table(title=title, title_style=f"bold {colour}", title_justify="left", box=None, pad_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("score", justify="right", style=colour, no_wrap=True)
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("id, source", overflow="fold", max_width=28)
    table.add_column("snippet", overflow="fold")
    for hit in hits:
        text = plain(snippet(hit.snippet, SNIPPET))
        if hit.row in marks:
            text = Text.assemble((f"{marks[hit.row]} ", "bold magenta"), text)
        place = plain(hit.id)
        if hit.source:
            place.append("\n").append(plain(hit.source).plain, "dim")
        table.add_row(str(hit.rank), scale.written(hit.score), str(hit.row), place, text)
    return [table]


def _facts(facts: Mapping[str, object]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, Text) else plain(value))
    return table


def grid(*columns: str) -> Table:
    """Return an empty table with these columns, without lines."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
