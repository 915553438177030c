"""What is said of rows' quality, as tables."""

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from influence.cli.streams import plain
from influence.cli.tables import grid

if TYPE_CHECKING:
    from influence.diagnose.issues import Examined


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
