"""What `Run` says about the quality of its rows: which ones hurt, and why."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from influence.engine.progress import Report

if TYPE_CHECKING:
    from pandas import DataFrame

    from influence.compare import Comparison
    from influence.export.clean import Exported
    from influence.groups.groups import GroupInfluences
    from influence.issues.neighbors import NeighbourGraph
    from influence.query.asked import Query
    from influence.run import Run
    from influence.select.less import Selected


class Diagnosing:
    """The part of `Run` that examines its rows. What it needs is imported when it is first asked."""

    def issues(
        self,
        checks: Sequence[str] | str | None = None,
        *,
        evaluation: Any = None,
        target: Any = None,
        settings: Sequence[str] = (),
        out: str | Path | None = None,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> "DataFrame":
        """Check every row: which are mislabelled, harmful, poisoned, duplicated, leaked, in conflict or outliers?

        Args:
            checks: Names of checks, as a sequence or as for `--checks`. Default: all that apply. See
                `influence.issues.checks.registry.CHECKS`.
            evaluation: Examples that the model should get right: a file with the columns of the training data, or
                queries as for `query_many`.
            target: An unwanted output, in the same forms as `evaluation`.
            settings: `check.setting=value` each, as for `--set`.
            out: Write the table to this Parquet file. Then an interrupted call can be resumed.
            overwrite: Replace an existing file.
            overrides: Settings of the cluster section, `key=value` each.
            progress: Called with every `Step`.

        Returns:
            One line per row of the run; see `influence.issues.table` for the columns. `attrs["rules"]` has
            the thresholds, `attrs["meanings"]` the meaning of the scores. A higher score is a stronger case.

        Raises:
            QueryError: A named check does not apply; the message lists those that do.
        """
        import pyarrow.parquet as pq

        from influence.issues.checks.registry import names_in, parse_settings
        from influence.issues.issues import examine
        from influence.query.evaluation import as_evaluation

        run: Any = self
        given = [
            None if held is None else as_evaluation(run, held, what)
            for held, what in ((evaluation, "the evaluation"), (target, "the target"))
        ]
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "issues.parquet" if out is None else Path(out)
            chosen = parse_settings([settings] if isinstance(settings, str) else settings)
            more: dict[str, Any] = {"overwrite": overwrite, "overrides": overrides, "progress": progress}
            found = examine(run, path, chosen, checks=names_in(checks), evaluation=given[0], target=given[1], **more)
            frame = pq.read_table(path).to_pandas()
        frame.attrs = {
            "run": run.manifest.fingerprint,
            "meanings": {finding.issue: finding.meaning for finding in found.findings},
            "rules": {finding.issue: finding.rule for finding in found.findings},
            "skipped": found.skipped,
        }
        return frame

    def neighbours(
        self, *, settings: Sequence[str] = (), overrides: Sequence[str] = (), progress: Report | None = None
    ) -> "NeighbourGraph":
        """Return every row's nearest rows by the cosine of stored gradients: those most alike and those most opposed.

        They are computed once and stored in the run's folder. `influence.issues.knn_graph.knn_matrix(graph)` is the CSR
        matrix of distances that cleanlab's Datalab takes.

        Args:
            settings: `key=value` each, of `influence.issues.neighbors.NeighbourSettings`: `k=20`, `kind=exact`.
            overrides: Settings of the cluster section, `key=value` each.
            progress: Called with every `Step`.

        Returns:
            `.blocks()` and `.of(rows)` read them; `.summary` describes the search.
        """
        from influence.issues.checks.registry import parse_settings
        from influence.issues.neighbors import neighbour_graph

        run: Any = self
        chosen = parse_settings([f"neighbours.{setting}" for setting in settings]).neighbours
        return neighbour_graph(run, chosen, overrides, progress)

    def groups(
        self,
        queries: Any,
        by: str = "source",
        *,
        sets: str | None = None,
        replicates: int = 1000,
        level: float = 0.95,
        seed: int = 0,
        out: str | Path | None = None,
        deliver: "Callable[[GroupInfluences], None]" = lambda _: None,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> "GroupInfluences":
        """Return the summed and mean influence of each group of rows on each set of queries, with intervals.

        Args:
            queries: A file with the columns of the training data, or queries as for `query_many`.
            by: The column that groups rows: `source`, `label`, `uri`, or another of the training data's files.
            sets: A column of the queries' file that divides them into sets. Default: one set.
            replicates: Number of bootstrap replicates.
            level: Confidence level of the intervals.
            seed: Seed of the bootstrap.
            out: A file that the caller will write. An interrupted scan is resumed from `OUT.parts/` beside it.
            deliver: Called with the result before these parts are removed, to write it.
            overwrite: Accept an existing file.
            overrides: Settings of the cluster section, `key=value` each.
            progress: Called with every `Step`.

        Returns:
            One line per group and set, `.to_pandas()`; `influence.groups.groups` describes the intervals.

        Raises:
            QueryError: There is no such column (the message lists the columns), or the file cannot be written.
            ConfigError: A number is out of range.
        """
        from influence.groups.file import check_groups_file
        from influence.groups.groups import GroupSettings, influence_of_groups
        from influence.issues.checks.registry import settings_of
        from influence.issues.parts import parts_of
        from influence.query.evaluation import as_evaluation

        run: Any = self
        settings = settings_of(GroupSettings, replicates=replicates, level=level, seed=seed)
        check_groups_file(run, out, queries, overwrite=overwrite)
        asked = as_evaluation(run, queries, "the queries")
        with parts_of(None if out is None else Path(out)) as folder:
            found = influence_of_groups(
                run, asked, by, folder, sets=sets, settings=settings, overrides=overrides, progress=progress
            )
            deliver(found)
        return found

    def select(
        self,
        target: Any,
        top: str | int,
        out: str | Path,
        *,
        per_group_cap: str | int | None = None,
        by: str = "source",
        sets: str | None = None,
        dedup: bool = False,
        words: bool = True,
        deliver: "Callable[[Selected], None]" = lambda _: None,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> "Selected":
        """Select the rows that promote a target most (LESS), and write them as JSON Lines with their row numbers.

        Args:
            target: A file with the columns of the training data, or queries as for `query_many`.
            top: How many rows: a share (`"5%"`) or a number.
            out: The file, `….jsonl`; see `influence.select.less` for its lines.
            per_group_cap: The largest share (`"40%"`) or number of selected rows from one group.
            by: The column that groups rows: `source`, `label`, `uri`, or another of the training data's files.
            sets: A column of the target's file that divides it into sets. The best set counts.
            dedup: Skip near-copies of better rows.
            words: Compare with as many rows selected by BM25.
            deliver: Called with the result when the file is complete, before its parts are removed.
            overwrite: Replace an existing file.
            overrides: Settings of the cluster section, `key=value` each.
            progress: Called with every `Step`.

        Raises:
            QueryError: An amount or a column is invalid, too few rows are left, or the file exists.
        """
        from influence.issues.checks.registry import settings_of
        from influence.issues.parts import parts_of
        from influence.query.evaluation import as_evaluation
        from influence.select.less import check_selection, select
        from influence.select.selection import SelectSettings, amount

        run: Any = self
        path = Path(out)
        amount(str(top), run.rows, "--top")
        check_selection(run, path, target if isinstance(target, str | Path) else None, overwrite=overwrite)
        cap = None if per_group_cap is None else str(per_group_cap)
        settings = settings_of(SelectSettings, top=str(top), per_group_cap=cap, by=by, sets=sets, dedup=dedup)
        asked = as_evaluation(run, target, "the target")
        with parts_of(path) as folder:
            given: dict[str, Any] = {"overwrite": overwrite, "overrides": overrides, "progress": progress}
            found = select(run, asked, path, settings, folder, words=words, **given)
            deliver(found)
        return found

    def export(
        self,
        out: str | Path,
        drop: str | Path | Sequence[str | Path],
        *,
        drop_issues: Sequence[str] | str | None = None,
        where: str | None = None,
        relabel: bool = False,
        overwrite: bool = False,
        progress: Report | None = None,
    ) -> "Exported":
        """Write the training data without the rows that tables of issues flag; `undo_export` restores the original.

        Kept rows keep their bytes. `OUT.decisions.parquet` beside the file records what was done.

        Args:
            out: The file, in the training data's format. A folder if the data are several files or a saved data set.
            drop: One table of `issues` or several.
            drop_issues: Drop the rows that these checks flagged, whatever their action, and no others. `"none"` drops
                nothing.
            where: Change only rows whose metadata meet a condition; see `query_many`.
            relabel: Replace labels by the suggested labels.
            overwrite: Replace an earlier export.
            progress: Called with every `Step`.

        Raises:
            QueryError: A table belongs to another run, or `out` exists or is one of the data's own files.
            DataError: The training data have changed since the build.
        """
        from influence.export.clean import export_clean
        from influence.export.verdicts import Wish
        from influence.issues.checks.registry import names_in

        run: Any = self
        tables = tuple(Path(table) for table in ([drop] if isinstance(drop, str | Path) else drop))
        names = names_in(drop_issues)
        wish = Wish(tables, None if names is None else tuple(names), where, relabel)
        return export_clean(run, wish, Path(out), overwrite=overwrite, progress=progress)

    def undo_export(
        self, cleaned: str | Path, out: str | Path, *, overwrite: bool = False, progress: Report | None = None
    ) -> None:
        """Restore the training data of an `export`: jsonl and csv byte for byte, parquet in every value.

        Args:
            cleaned: The exported file, with its decisions beside it.
            out: The file to write. For several files, a folder that does not exist.
            overwrite: Replace an existing file.
            progress: Called with every `Step`.

        Raises:
            QueryError: The export belongs to another run, or `out` exists or is one of the inputs.
            DataError: The cleaned data have changed since the export.
        """
        from influence.export.undo import undo_export

        run: Any = self
        undo_export(Path(cleaned), Path(out), of_run=run, overwrite=overwrite, progress=progress)

    def compare(
        self, other: "Run", queries: Sequence["Query"], *, k: int = 10, progress: Report | None = None
    ) -> "Comparison":
        """Compare with another run over the same rows.

        Args:
            other: The other run; rows rise and fall from this one to that one.
            queries: The queries of both runs; see `query_many`.
            k: Length of the lists of best rows that are compared.
            progress: Called with every `Step`.

        Returns:
            Rank correlation, shared best rows, rows that rose and fell, per query. `.to_pandas()` has a line per query.

        Raises:
            QueryError: The runs have different data, there are no queries, or k is not from 1 to the number of rows.
        """
        from influence.compare import compare

        run: Any = self
        return compare(run, other, queries, k=k, progress=progress)


__all__ = ["Diagnosing"]
