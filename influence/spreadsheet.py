"""CSV that people open in a spreadsheet: no cell of it is a formula.

Spreadsheets run a cell that begins with = + - or @, and a row of training data may begin so. Such a text gets an
apostrophe in front, which spreadsheets take for "this is text". Numbers stay numbers.

Source: OWASP, "CSV Injection".
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ENDS = "\r\n"
"""What csv quotes a cell for: with a line's own end, LF, a CR in a text would begin a row that a formula may lead."""
_FORMULA = re.compile(
    r"[\s\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\x00-\x1f\x7f-\x9f]"
)
"""How a cell begins that may be run, full-width signs included, or whose first character a reader may drop."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_csv(
    names: Sequence[str], records: Iterable[Mapping[str, Any]], *, raw: bool = False, header: bool = True
) -> str:
    """Return records as CSV.

    Args:
        names: The columns, in order.
        records: A value for each of them.
        raw: Write texts as they are. For programs, which take an apostrophe for part of the text.
        header: Begin with a line of the columns' names.
    """
    written = io.StringIO(newline="")
    table = csv.DictWriter(written, names, lineterminator=ENDS)
    lines = []

    def take() -> None:
        lines.append(written.getvalue().removesuffix(ENDS))
        written.seek(0)
        written.truncate()

    if header:
        table.writeheader()
        take()
    for record in records:
        table.writerow(record if raw else {name: safe_cell(value) for name, value in record.items()})
        take()
    return "".join(f"{line}\n" for line in lines)


def safe_cell(value: Any) -> Any:
    """Return a value that no spreadsheet runs: a text that looks like a formula with an apostrophe in front."""
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"
