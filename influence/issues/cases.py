"""The cases of one check in columns, in the order of their rows: a flagged row costs some bytes and no Python objects.

About 150 bytes a flagged row with a few ids as evidence; what isn't flagged costs nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from influence.issues.finding import Case

BLOCK = 4096
"""Cases that are objects at a time."""
SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("evidence", pa.large_list(pa.large_string()), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("suggestion", pa.large_string(), nullable=False),
        pa.field("label", pa.large_string()),
    ]
)


class Cases(Mapping[int, Case]):
    """Row to case, of the flagged rows, in their order.

    Attributes:
        rows: The flagged rows, int64, ascending.
    """

    def __init__(self, table: pa.Table) -> None:
        """Take over a table of `SCHEMA`, its rows ascending and none twice."""
        self._table = table
        self.rows: np.ndarray = table.column("row").to_numpy()

    @property
    def labels(self) -> int:
        """How many cases suggest a label."""
        column = self._table.column("label")
        return len(column) - column.null_count

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return map(int, self.rows)

    def __getitem__(self, row: int) -> Case:
        found = self.between(row, row + 1)
        if not found:
            raise KeyError(row)
        return found[row]

    def between(self, start: int, stop: int) -> dict[int, Case]:
        """Return the cases of the rows [start, stop)."""
        first, last = np.searchsorted(self.rows, [start, stop]).tolist()
        lines: list[dict[str, Any]] = self._table.slice(first, last - first).to_pylist()
        return {
            line["row"]: Case(tuple(line["evidence"]), line["action"], line["suggestion"], line["label"])
            for line in lines
        }

    def to_bytes(self) -> np.ndarray:
        """Return them as a stream of Arrow, uint8."""
        into = pa.BufferOutputStream()
        with pa.ipc.new_stream(into, SCHEMA) as writer:
            writer.write_table(self._table)
        # A copy: Arrow's memory may not be written to, and torch takes none that can't.
        return np.frombuffer(into.getvalue(), dtype=np.uint8).copy()

    @classmethod
    def from_bytes(cls, content: np.ndarray) -> "Cases":
        """Return what `to_bytes` gave; it stays in that memory."""
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            return cls(reader.read_all())


def gather(cases: Mapping[int, Case] | Iterable[tuple[int, Case]]) -> Cases:
    """Return cases in columns, whatever order they come in; each row once."""
    if isinstance(cases, Cases):
        return cases
    pairs, batches = iter(cases.items() if isinstance(cases, Mapping) else cases), []
    while block := list(islice(pairs, BLOCK)):
        held = [case for _, case in block]
        columns = [
            pa.array([row for row, _ in block], pa.int64()),
            pa.array([case.evidence for case in held], SCHEMA.field("evidence").type),
            *(
                pa.array([getattr(case, name) for case in held], SCHEMA.field(name).type)
                for name in ("action", "suggestion", "label")
            ),
        ]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    table = pa.Table.from_batches(batches, SCHEMA)
    rows = table.column("row").to_numpy()
    return Cases(table if (np.diff(rows) > 0).all() else table.take(pa.array(np.argsort(rows, kind="stable"))))


__all__ = ["Cases", "gather"]
