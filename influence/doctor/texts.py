"""What a run of `bm25` stands on: rows with words, few enough for memory, and room on the disk. No model is loaded."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from influence.baselines.bm25 import MOST_ROWS
from influence.config import RunConfig
from influence.data.dataset import Rows
from influence.doctor.check import Check
from influence.estimate.lexical_forecast import forecast_texts


def texts(config: RunConfig, rows: Rows, place: Path | None) -> Iterator[Check]:
    """Look at the words of some rows, and at what the index of all of them takes."""
    found = forecast_texts(config, rows)
    looked = f"{found.rows_read - found.silent} of {found.rows_read} rows have words, {found.words_per_row:,.0f} a row"
    remedy = "A row without a word of two letters that is no English stop word scores 0: is the right column read?"
    yield Check("words", "note" if found.silent else "pass", looked, "words in every row", remedy)
    fits = len(rows) <= MOST_ROWS
    yield Check(
        "rows",
        "pass" if fits else "fail",
        f"{len(rows):,} rows",
        f"at most {MOST_ROWS:,}",
        "BM25's index is built in memory: set data.limit, or use the recipe repsim or gradcos.",
        value=float(len(rows)),
        limit=float(MOST_ROWS),
    )
    if place is None:
        return
    need = found.estimate.disk
    free = shutil.disk_usage(next(folder for folder in (place, *place.absolute().parents) if folder.exists())).free
    yield Check(
        "free disk",
        "pass" if free > need else "fail",
        f"{free / 1e9:.3g} GB free",
        f"{need / 1e9:.3g} GB for {len(rows):,} rows, and their texts",
        "Build on another disk.",
        value=float(free),
        limit=float(need),
    )
