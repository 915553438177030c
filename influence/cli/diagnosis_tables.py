"""What is said of rows' quality, as tables."""

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from influence.cli.streams import plain
from influence.cli.tables import grid

if TYPE_CHECKING:
    from influence.groups.groups import GroupInfluences
    from influence.issues.issues import Examined
    from influence.select.less import Selected


def issues_tables(found: "Examined") -> list[RenderableType]:
    """Return what an examination found: issue, rows, the worst of them; then every rule as it was used."""
    table = grid("issue", "rows", "share", "the strongest cases")
    for finding in found.findings:
        share = f"{len(finding.cases) / max(1, found.rows):.1%}"
        worst = plain(", ".join(found.worst[finding.issue]) or "none")
        table.add_row(plain(finding.issue), f"{len(finding.cases):,}", share, worst)
    notes = Text()
    for finding in found.findings:
        notes.append("\n").append(f"{finding.issue}: ", "bold").append_text(plain(f"{finding.meaning} {finding.rule}"))
    if found.neighbours:
        notes.append("\n").append("neighbours: ", "bold").append_text(plain(found.neighbours))
    for name, lacks in found.skipped.items():
        notes.append("\n").append(f"{name} not checked: ", "yellow").append_text(plain(lacks))
    notes.append("\n").append("In every column, the higher a score, the stronger the case against the row.\n", "dim")
    return [table, notes]


def groups_tables(found: "GroupInfluences") -> list[RenderableType]:
    """Return what each group of rows does to each set of queries, and what the numbers mean."""
    tables: list[RenderableType] = []
    for name in found.set_names:
        lines = found.of_set(name)
        on = "" if found.sets is None else f"{f'no {found.sets}' if name is None else name}: "
        tables.append(plain(f"{on}influence on {lines[0].queries:,} quer{'y' if lines[0].queries == 1 else 'ies'}"))
        table = grid(found.by, "rows", "sum", "from", "to", "mean of a row", "from", "to", "")
        for line in lines:
            group = Text(f"no {found.by}", "dim") if line.group is None else plain(line.group)
            sums = (_number(value) for value in (line.sum, line.sum_low, line.sum_high))
            means = (_number(value) for value in (line.mean, line.mean_low, line.mean_high))
            table.add_row(group, f"{line.rows:,}", *sums, *means, Text(line.note or "", "dim"))
        tables.append(table)
    notes = f"In {found.unit}. {found.sign}\n{found.intervals}\n{found.recipe}, run {found.run}"
    return [*tables, Text(notes, "dim"), *_cautioned(found.caution)]


def selection_tables(found: "Selected") -> list[RenderableType]:
    """Return where the chosen rows come from, and how the choice differs from simpler ones."""
    chosen = len(found.chosen)
    tables: list[RenderableType] = []
    table = grid(found.by, "chosen", "of", "share of the chosen", "share of the group")
    for name, (taken, there) in found.groups.items():
        group = Text(f"no {found.by}", "dim") if name is None else plain(name)
        table.add_row(group, f"{taken:,}", f"{there:,}", f"{taken / chosen:.1%}", f"{taken / there:.1%}")
    tables.append(table)
    if found.sets:
        table = grid("set of the target", "chosen for it")
        for name, taken in found.sets.items():
            table.add_row(plain(name), f"{taken:,}")
        tables.append(table)
    words = "not compared" if found.words is None else f"{found.words:.1%} in common"
    length = "none" if found.length is None else _number(found.length)
    lowest = _number(float(found.scores[found.chosen[-1]]))
    notes = (
        f"random choice of as many: {found.random:.1%} in common (expected {found.expected:.1%})\n"
        f"BM25's choice of as many: {words}\n"
        f"rank correlation of score and length ({found.length_of}): {length}\n"
        f"lowest chosen score: {lowest}, in {found.unit}. {found.sign}\n"
    )
    return [*tables, Text(notes), plain(f"{found.recipe}, run {found.run}"), *_cautioned(found.caution)]


def _cautioned(caution: str | None) -> list[RenderableType]:
    return [] if caution is None else [Text(caution, "yellow")]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3g}".replace("-", "−")
