"""The table of issues as a data frame, whether or not it is kept in a file."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from influence.engine.progress import Report
from influence.issues.checks.registry import names_in, parse_settings
from influence.issues.issues import examine
from influence.query.evaluation import as_evaluation
from influence.run_dir import RunDir

if TYPE_CHECKING:
    from pandas import DataFrame


def issues_frame(
    run: RunDir,
    checks: Sequence[str] | str | None,
    *,
    evaluation: Any = None,
    target: Any = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> "DataFrame":
    """Check every row of a run: which are mislabelled, harmful, poisoned, duplicated, leaked, in conflict or outliers?

    Args:
        run: The run.
        checks: Names of checks, as a sequence or as for `--checks`. None: all that apply. See
            `influence.issues.checks.registry.CHECKS`.
        evaluation: Examples that the model should get right: a file with the columns of the training data, or queries
            as for `Run.query_many`.
        target: An unwanted output, in the same forms as `evaluation`.
        settings: `check.setting=value` each, as for `--set`.
        out: Write the table to this Parquet file. Then an interrupted call can be resumed.
        overwrite: Replace an existing file.
        overrides: Settings of the cluster section, `key=value` each.
        progress: Called with every `Step`.

    Returns:
        One line per row of the run; see `influence.issues.table` for the columns. `attrs["rules"]` has the thresholds,
        `attrs["meanings"]` the meaning of the scores. A higher score is a stronger case.

    Raises:
        QueryError: A named check does not apply; the message lists those that do.
    """
    right, unwanted = (
        None if examples is None else as_evaluation(run, examples, name)
        for name, examples in (("the evaluation", evaluation), ("the target", target))
    )
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "issues.parquet" if out is None else Path(out)
        chosen = parse_settings([settings] if isinstance(settings, str) else settings)
        examined = examine(
            *(run, path, chosen),
            checks=names_in(checks),
            evaluation=right,
            target=unwanted,
            overwrite=overwrite,
            overrides=overrides,
            progress=progress,
        )
        frame = pq.read_table(path).to_pandas()
    frame.attrs = {
        "run": run.manifest.fingerprint,
        "meanings": {finding.issue: finding.meaning for finding in examined.findings},
        "rules": {finding.issue: finding.rule for finding in examined.findings},
        "skipped": examined.skipped,
    }
    return frame
