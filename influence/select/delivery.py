"""A selection, made so that an interrupted scan goes on until all that is made of it is written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from influence.engine.progress import Report
from influence.issues.parts import parts_of
from influence.query.evaluation import as_evaluation
from influence.run_dir import RunDir
from influence.select.less import Selected, check_selection, select
from influence.select.selection import SelectSettings, amount


def deliver_selection(
    run: RunDir,
    target: Any,
    out: str | Path,
    settings: SelectSettings,
    *,
    words: bool = True,
    deliver: Callable[[Selected], None] = lambda _: None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> Selected:
    """Choose the rows that promote a target most (LESS), and write them.

    Args:
        run: The run.
        target: A file with the columns of the training data, or queries as for `Run.query_many`.
        out: The file, `….jsonl`; see `influence.select.less` for its lines.
        settings: How many rows, and which are skipped.
        words: Compare with as many rows selected by BM25.
        deliver: Called with the result when the file is complete, before its parts are removed.
        overwrite: Replace an existing file.
        overrides: Settings of the cluster section, `key=value` each.
        progress: Called with every `Step`.

    Raises:
        QueryError: An amount or a column is invalid, too few rows are left, or the file exists.
    """
    path = Path(out)
    amount(settings.top, run.rows, "--top")
    check_selection(run, path, target if isinstance(target, str | Path) else None, overwrite=overwrite)
    evaluation = as_evaluation(run, target, "the target")
    with parts_of(path) as folder:
        selected = select(
            *(run, evaluation, path, settings, folder),
            words=words,
            overwrite=overwrite,
            overrides=overrides,
            progress=progress,
        )
        deliver(selected)
    return selected
