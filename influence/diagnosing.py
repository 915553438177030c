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
        """Examine every row: which are mislabelled, harmful, poisoned, duplicated, leaked, in conflict, out of place?

        Args:
            checks: Which checks, one by one or in a text as `--checks` takes it; all that apply if None. See
                `influence.issues.checks.registry.CHECKS`.
            evaluation: Examples that the model should get right: a file with the columns of the training data, or
                queries as `query_many` takes them.
            target: An unwanted output, as `evaluation`.
            settings: `check.setting=value` each, as `--set` takes them.
            out: Keep the table in this Parquet file; then an examination that was interrupted goes on, too.
            overwrite: Replace the file that is there.
            overrides: `key=value` each, of the cluster section.
            progress: Called with every `Step`.

        Returns:
            A line a row of the run; see `influence.issues.table` for the columns. `attrs["rules"]` and
            `attrs["meanings"]` say from where on rows are flagged and what a score means; higher is a stronger case.

        Raises:
            QueryError: A check that was named doesn't apply; those that do are listed.
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

        They are found once and kept in the run's folder. `influence.issues.knn_graph.knn_matrix(graph)` is the CSR
        matrix of distances that cleanlab's Datalab takes.

        Args:
            settings: `key=value` each, of `influence.issues.neighbors.NeighbourSettings`: `k=20`, `kind=exact`.
            overrides: `key=value` each, of the cluster section.
            progress: Called with every `Step`.

        Returns:
            `.blocks()` and `.of(rows)` read them; `.summary` says how they were found.
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
        """Say what each group of rows does to each set of queries: summed and mean influence, with intervals.

        Args:
            queries: A file with the columns of the training data, or queries as `query_many` takes them.
            by: The column that groups rows: `source`, `label`, `uri`, or another of the training data's files.
            sets: A column of the queries' file that parts them into sets; they are one set if None.
            replicates: Of the bootstrap.
            level: Of confidence.
            seed: Of the bootstrap.
            out: A file that the caller will write; an interrupted scan goes on from `OUT.parts/` beside it.
            deliver: Called with the answer before those parts go, to write what is made of it.
            overwrite: The file may be there already.
            overrides: `key=value` each, of the cluster section.
            progress: Called with every `Step`.

        Returns:
            A line a group and set, `.to_pandas()`; see `influence.groups.groups` for what intervals are of.

        Raises:
            QueryError: There is no such column (those there are, are listed), or the file can't be written to.
            ConfigError: A number that can't be.
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
        """Choose the rows that promote a target most (LESS), and write them as JSON Lines with their row numbers.

        Args:
            target: A file with the columns of the training data, or queries as `query_many` takes them.
            top: How many: a share as `"5%"`, or a number of rows.
            out: The file, `….jsonl`; see `influence.select.less` for its lines.
            per_group_cap: The most that one group may have of the chosen rows, as `"40%"` or a number.
            by: The column that groups rows: `source`, `label`, `uri`, or another of the training data's files.
            sets: A column of the target's file that parts it into sets, of which the best counts.
            dedup: Leave out near-copies of better rows.
            words: Compare with BM25's choice of as many rows.
            deliver: Called with the answer once the file stands, before its parts go, to write what else is made of it.
            overwrite: Replace the file that is there.
            overrides: `key=value` each, of the cluster section.
            progress: Called with every `Step`.

        Raises:
            QueryError: An amount or a column that can't be, fewer rows are left than are wanted, or the file is there.
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
        """Write the training data without the rows that tables of issues suggest to drop; see `undo_export`.

        What stays keeps its bytes. What was done is in `OUT.decisions.parquet` beside it.

        Args:
            out: The file, of the training data's format; of several files, or of a saved data set, a folder.
            drop: One table of `issues` or several.
            drop_issues: Drop the rows that these checks flagged, whatever they suggest, and no others; `"none"` drops
                nothing.
            where: Drop and relabel only rows whose metadata meet a condition; see `query_many`.
            relabel: Change labels where the tables suggest it.
            overwrite: Replace an earlier export.
            progress: Called with every `Step`.

        Raises:
            QueryError: A table is of another run, or `out` is there or one of the data's own files.
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
        """Write the training data as they were before an `export`: jsonl and csv to the byte, of parquet every value.

        Args:
            cleaned: What the export wrote; its decisions are beside it.
            out: The file; of several files a folder that doesn't exist.
            overwrite: Replace the file that is there.
            progress: Called with every `Step`.

        Raises:
            QueryError: The export was of another run's data, or `out` is there or is read.
            DataError: The cleaned data have changed since the export.
        """
        from influence.export.undo import undo_export

        run: Any = self
        undo_export(Path(cleaned), Path(out), of_run=run, overwrite=overwrite, progress=progress)

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
        from influence.compare import compare

        run: Any = self
        return compare(run, other, queries, k=k, progress=progress)


__all__ = ["Diagnosing"]
