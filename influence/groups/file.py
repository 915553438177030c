"""Groups as a file: JSON with everything, or a flat record a group and set as CSV or Parquet."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from influence.artifacts.outfile import check_outfile
from influence.groups.groups import COLUMNS, GroupInfluences
from influence.run_dir import RunDir
from influence.spreadsheet import write_csv
from influence.text_dedup.inputs import data_files

Format = Literal["json", "csv", "parquet"]
TEXTS = ("set", "group", "note", "magnitudes", "unit")
COUNTS = ("rows", "queries")


def check_groups_file(run: RunDir, out: str | Path | None, queries: Any, *, overwrite: bool) -> None:
    """Refuse a file that groups can't be written to.

    Raises:
        QueryError: See `outfile.check_outfile`; the queries and the training data are only read.
    """
    if out is not None:
        read = (*data_files(run), *([queries] if isinstance(queries, str | Path) else []))
        check_outfile(Path(out), "the groups", overwrite=overwrite, read=read)


def encode(found: GroupInfluences, form: Format, *, raw_csv: bool = False) -> bytes:
    """Return groups as a file's bytes; UTF-8, a group or set without a value as null or an empty cell.

    A CSV cell that a spreadsheet might run has an apostrophe in front, unless `raw_csv`: see `influence.spreadsheet`.
    """
    if form == "json":
        return (json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode(
            errors="backslashreplace"
        )
    records = [{**asdict(line), "unit": found.unit} for line in found.lines]
    names = (*COLUMNS, "unit")
    if form == "csv":
        return write_csv(names, records, raw=raw_csv).encode(errors="backslashreplace")
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: pa.string() for name in TEXTS} | {name: pa.int64() for name in COUNTS}
    told = {"sign": found.sign, "intervals": found.intervals, "recipe": found.recipe, "run": found.run, "by": found.by}
    told |= {"caution": found.caution} if found.caution is not None else {}
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in names], metadata=told)
    made = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), made)
    return made.getvalue()


__all__ = ["check_groups_file", "encode"]
