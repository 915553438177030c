"""What two runs make of the same queries, as tables."""

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from influence.cli.streams import plain
from influence.cli.tables import grid

if TYPE_CHECKING:
    from influence.compare import Comparison, Move


def comparison_tables(found: "Comparison") -> list[RenderableType]:
    """Return a line a query, then the rows that moved most, then what the numbers mean."""
    table = grid("query", "rank correlation", f"best {found.k} in both", f"most opposing {found.k} in both")
    for query in found.queries:
        opposing = "" if query.opposing is None else f"{query.opposing:.0%}"
        table.add_row(plain(query.query), _number(query.correlation), f"{query.promoting:.0%}", opposing)
    tables: list[RenderableType] = [table]
    for query in found.queries:
        moved = grid("", "row", "rank in A", "rank in B", "score in A", "score in B")
        for title, moves in (("rose", query.rose), ("fell", query.fell)):
            for move in moves:
                moved.add_row(*_line(title, move))
        if query.rose or query.fell:
            tables += [Text("\nquery ", "dim").append_text(plain(query.query)), moved]
    foot = Text(f"\nmean rank correlation {_number(found.correlation)} over {len(found.queries):,} queries, ")
    foot.append(f"{found.rows:,} rows ranked, most promoting first")
    for letter, run, recipe, unit, sign in zip("AB", found.runs, found.recipes, found.units, found.signs, strict=True):
        foot.append("\n").append_text(plain(f"{letter}: {run}, {recipe}; scores in {unit}. {sign}"))
    for letter, caution in zip("AB", found.cautions, strict=True):
        if caution is not None:
            foot.append("\n").append(f"{letter}: {caution}", "yellow")
    foot.append("\n")
    return [*tables, foot]


def _line(title: str, move: "Move") -> list[Text]:
    ranks = (f"{rank:,.0f}" for rank in move.ranks)
    scores = (f"{score:+.3g}" for score in move.scores)
    return [plain(value) for value in (f"{title}: {move.id}", move.row, *ranks, *scores)]


def _number(value: float | None) -> str:
    return "none (all rows score alike)" if value is None else f"{value:.3f}"
