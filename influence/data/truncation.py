"""What `data.max_tokens` takes from rows, in words: how many lose all that is scored, and what length would keep it."""

from collections.abc import Sequence
from dataclasses import dataclass

from influence.data.tokenise import Part


@dataclass(frozen=True)
class Truncation:
    """What truncation does to some rows.

    Attributes:
        rows: How many were looked at.
        cut: Of them, those that are longer than the limit.
        silenced: Those of which every scored token is cut off.
        longest: Tokens of the longest row.
        longest_silenced: Tokens of the longest of those that lose every scored token.
    """

    rows: int
    cut: int
    silenced: int
    longest: int
    longest_silenced: int

    @classmethod
    def of(cls, parts: Sequence[Part], rows: int) -> "Truncation":
        """Measure it on the parts of so many rows."""
        cut = [part for part in parts if part.lost]
        silenced = [part for part in cut if not part.scored]
        return cls(
            rows,
            len(cut),
            len(silenced),
            max((part.length for part in parts), default=0),
            max((part.length for part in silenced), default=0),
        )

    def __add__(self, other: "Truncation") -> "Truncation":
        """Return what it does to both sets of rows."""
        return Truncation(
            self.rows + other.rows,
            self.cut + other.cut,
            self.silenced + other.silenced,
            max(self.longest, other.longest),
            max(self.longest_silenced, other.longest_silenced),
        )

    def remedy(self, max_tokens: int) -> str:
        """Return how many rows lose every scored token, and what to do; nothing where none does."""
        if not self.silenced:
            return ""
        return (
            f"data.max_tokens ({max_tokens}) cuts off every scored token of {self.silenced} of {self.rows} rows: their "
            f"answers begin later. Set data.max_tokens to {self.longest_silenced} (the longest of these rows) or more."
        )


def nothing_scored(parts: Sequence[Part], rows: int, place: str, max_tokens: int) -> str:
    """Return the message that none of some rows has a scored token, with its cause."""
    start = f"None of {rows} rows spread over {place} has a scored token: "
    truncation = Truncation.of(parts, rows)
    if truncation.silenced:
        other_rows = rows - truncation.silenced
        rest = f" The other {other_rows} have nothing to score." if other_rows else ""
        return start + truncation.remedy(max_tokens) + rest
    return (
        f"{start}they are empty, or one token long, or their completions are empty, or their chats have no turn of the "
        "assistant. There is nothing to capture."
    )


__all__ = ["Truncation", "nothing_scored"]
