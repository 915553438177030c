"""What `Run` says about the quality of its rows: which ones hurt, and why."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from influence.pipeline.progress import Report

if TYPE_CHECKING:
    from pandas import DataFrame

    from influence.diagnose.compare import Comparison
    from influence.query.asked import Query
    from influence.run import Run


class Diagnosing:
    """The part of `Run` that examines its rows. What it needs is imported when it is first asked."""

    def issues(
        self,
        checks: Sequence[str] | None = None,
        *,
        evaluation: Any = None,
        target: Any = None,
        settings: Sequence[str] = (),
        out: str | Path | None = None,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> "DataFrame":
        """Examine every row: which are mislabelled, harmful, poisoned, duplicated, leaked, in conflict, out of place?

        Args:
            checks: Which checks; all that apply if None. See `influence.diagnose.checks.CHECKS`.
            evaluation: Examples that the model should get right: a file with the columns of the training data, or
                queries as `query_many` takes them.
            target: An unwanted output, as `evaluation`.
            settings: `check.setting=value` each, as `--set` takes them.
            out: Keep the table in this Parquet file; then an examination that was interrupted goes on, too.
            overwrite: Replace the file that is there.
            overrides: `key=value` each, of the cluster section.
            progress: Called with every `Step`.

        Returns:
            A line a row of the run; see `influence.diagnose.table` for the columns. `attrs["rules"]` and
            `attrs["meanings"]` say from where on rows are flagged and what a score means; higher is a stronger case.

        Raises:
            QueryError: A check that was named doesn't apply; those that do are listed.
        """
        import pyarrow.parquet as pq

        from influence.diagnose.checks import parse_settings
        from influence.diagnose.evaluation import as_evaluation
        from influence.diagnose.issues import examine

        run: Any = self
        given = [
            None if held is None else as_evaluation(run, held, what)
            for held, what in ((evaluation, "the evaluation"), (target, "the target"))
        ]
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "issues.parquet" if out is None else Path(out)
            found = examine(
                run,
                path,
                parse_settings(settings),
                checks=checks,
                evaluation=given[0],
                target=given[1],
                overwrite=overwrite,
                overrides=overrides,
                progress=progress,
            )
            frame = pq.read_table(path).to_pandas()
        frame.attrs = {
            "run": run.manifest.fingerprint,
            "meanings": {finding.issue: finding.meaning for finding in found.findings},
            "rules": {finding.issue: finding.rule for finding in found.findings},
            "skipped": found.skipped,
        }
        return frame

    def compare(
        self, other: "Run", queries: Sequence["Query"], *, k: int = 10, progress: Report | None = None
    ) -> "Comparison":
        """Say how another run over the same rows disagrees about some queries.

        Args:
            other: The other run; rows rise and fall from this one to that one.
            queries: What both are asked; see `query_many`.
            k: Rows of the lists of best rows that are compared.
            progress: Called with every `Step`.

        Returns:
            Rank correlation, shared best rows, rows that rose and fell, by query; `.to_pandas()`, a line a query.

        Raises:
            QueryError: The runs are of other data, there are no queries, or k isn't 1 to the number of rows.
        """
        from influence.diagnose.compare import compare

        run: Any = self
        return compare(run, other, queries, k=k, progress=progress)


__all__ = ["Diagnosing"]
