"""A run directory, built or opened: what a user holds in a notebook.

    run = influence.build("run.yaml", out="runs/x")       # or influence.open("runs/x")
    hits = run.query(prompt="…", completion="…", k=10)    # Hits: .promoting, .opposing
    scores = run.score([{"prompt": "…", "completion": "…"}])

Queries run in the calling process, through the same session as the rows did. What a method needs is imported when it
is called.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from influence.artifacts.place import run_path
from influence.config import RunConfig, load_config, override_config
from influence.data.example import Example
from influence.data.queries import Query, QueryForm, as_example
from influence.engine.progress import Report
from influence.errors import QueryError
from influence.query.index_errors import index_errors
from influence.recipes import Recipe
from influence.stages.opening import open_run_dir
from influence.stages.status import status
from influence.store.manifest import Manifest
from influence.store.reader import Store

if TYPE_CHECKING:
    from pandas import DataFrame

    from influence.capture.session import Session
    from influence.compare import Comparison
    from influence.estimate.forecast import Plan
    from influence.export.clean import Exported
    from influence.groups.groups import GroupInfluences
    from influence.issues.neighbors import NeighbourGraph
    from influence.query.attribute import Queries
    from influence.query.hits import Hits
    from influence.query.retriever import Options, Retriever
    from influence.query.scores import Scores
    from influence.scan.answer import Answered
    from influence.scan.plan import Keep
    from influence.select.less import Selected
    from influence.vectors.ensemble import Compared


def build(
    config: RunConfig | str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> "Run":
    """Build a run, or resume it, and open it.

    Args:
        config: A configuration, or the path of a run file.
        out: The run directory: a local path, or `s3://bucket/folder`.
        overrides: Settings to change, `key=value` each, as for `--set`.
        progress: Called with every `Step`; a `ProgressBar` shows them.

    Raises:
        InfluenceError: See `influence.stages.build.build_run`. `Incomplete`: the same call resumes.
    """
    from influence.stages.build import build_run

    with index_errors():
        build_run(_configured(config, overrides), run_path(out), progress)
    return Run(out, trust=True)


def open(path: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto", trust: bool = False) -> "Run":
    """Open a finished run.

    A run that this user did not build, or whose configuration was changed since, opens restricted: it uses only local
    files that are not pickles, and computes in the calling process. Settings that request more are logged.

    Args:
        path: The run directory.
        device: Where queries are computed. It can differ from the device of the build.
        trust: Allow what the run's configuration requests, whoever wrote it: run code of its model's folder, download
            from a hub, send work to its cluster.

    Raises:
        StoreError: There is no run, or its files cannot be used.
        FingerprintMismatch: A setting that decides the answers was changed since the build.
        ConfigError: Its configuration cannot be used, or not without `trust`.
        Incomplete: A part of the run is missing; the same build adds it.
    """
    return Run(path, device=device, trust=trust)


class Run:
    """One run directory. Opening it loads no model; the first query does.

    Several threads may ask one run: their queries take turns, as they have one model.

    Attributes:
        run_dir: The directory: path, configuration, manifest and rows.
    """

    def __init__(
        self, path: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto", trust: bool = False
    ) -> None:
        self.run_dir = open_run_dir(path, trust=trust)
        self._device: Literal["auto", "cpu", "cuda"] = device
        self._turn = threading.RLock()

    @property
    def path(self) -> Path:
        """The run directory, absolute."""
        return self.run_dir.path

    @property
    def config(self) -> RunConfig:
        """Its whole resolved configuration."""
        return self.run_dir.config

    @property
    def store(self) -> Store:
        """Its rows."""
        return self.run_dir.store

    @property
    def recipe(self) -> Recipe:
        """How rows are scored."""
        return self.run_dir.recipe

    @property
    def query_form(self) -> QueryForm:
        """How queries are read: by the names of the data's columns, and as chats where the rows are."""
        return self.run_dir.query_form

    @property
    def manifest(self) -> Manifest:
        """The manifest: format version, fingerprint, layers, number of rows."""
        return self.store.manifest

    @property
    def rows(self) -> int:
        """N, the number of rows of the data set."""
        return self.store.rows

    @cached_property
    def session(self) -> "Session":
        """The model with its hooks in this process, loaded at the first use.

        Raises:
            FingerprintMismatch: The model, its tokeniser, a checkpoint or an optimiser's state has changed since the
                rows were captured, or trak's projector draws other numbers here.
        """
        from influence.capture.opening import open_session

        return open_session(self.config, self.path, self.manifest, self._device)

    @property
    def comparison(self) -> "Compared":
        """The recipe with its curvature, loaded at the first use."""
        return self._retriever.comparison

    @cached_property
    def _retriever(self) -> "Retriever":
        from influence.query.retriever import Retriever

        return Retriever(self.run_dir, lambda: self.session)

    def query(
        self,
        prompt: str = "",
        completion: str = "",
        *,
        contrast: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        raw: bool = False,
        k: int | None = None,
        id: str | None = None,
        exact: bool | None = None,
        candidates: int | None = None,
        where: str | None = None,
    ) -> "Hits":
        """Return the rows that promote `completion` after `prompt` most, and those that oppose it most.

        In a run of chats, prompt and completion are the turns of a user and the assistant.

        Args:
            prompt: The text before the completion.
            completion: The output that is measured.
            contrast: Another output. The difference of the two log-probabilities is measured. For a chat, another last
                turn of the assistant.
            messages: A chat instead of prompt and completion: objects with role and content. It is rendered by
                the model's chat template and scored as a row is: every assistant turn except those of weight 0.
            tools: With messages: the tools that the template receives.
            raw: Use prompt and completion as bare texts, also in a run of chats.
            k: See `query_many`.
            id: A name of the query.
            exact: See `query_many`.
            candidates: See `query_many`.
            where: See `query_many`.

        Returns:
            The k rows that promote it most and the k rows that oppose it most.

        Raises:
            QueryError: No token of the completion is scored, there are fewer than k rows, or see `query_many`.
        """
        asked: dict[str, Any] = {"id": id, "contrast": contrast}
        if messages is None and tools is None:
            asked |= {"prompt": prompt, "completion": completion}
        elif messages is None or prompt or completion:
            raise QueryError(
                "A chat query has messages (and tools) and no prompt or completion: remove one of the two."
            )
        else:
            asked |= {"messages": list(messages), "tools": None if tools is None else list(tools)}
        return self.query_many([asked], k=k, exact=exact, candidates=candidates, where=where, raw=raw)[0]

    def query_many(
        self,
        queries: Sequence[Query],
        *,
        k: int | None = None,
        exact: bool | None = None,
        candidates: int | None = None,
        where: str | None = None,
        raw: bool = False,
        progress: Report | None = None,
    ) -> "list[Hits]":
        """Answer several queries.

        Args:
            queries: Mappings with prompt and completion, messages, text (and label) or input_ids. A row of the training
                data is a query.
            k: Number of rows on each side. Default: 10, or all rows (or candidates) if there are fewer.
            exact: Whether the index's candidates are re-ranked with exact scores. Default: as set in the recipe.
            candidates: Number of candidates of each side. Default: as set in the recipe.
            where: Restrict the answer to rows whose metadata meet a condition, `source = 'x' and tokens > 50`: a DuckDB
                expression over row, id, source, uri, label, tokens, loss, norm and text. These rows are scanned.
            raw: Use prompts and completions as bare texts, also in a run of chats.
            progress: Called with every `Step` of exact scoring; a `ProgressBar` shows them.

        Raises:
            QueryError: A query cannot be answered; k or the number of candidates is out of range; the run has no
                factors for exact scores; or a baseline does not support an option.
        """
        from influence.query.attribute import NO_QUERIES
        from influence.query.retriever import Options

        if not queries:
            raise QueryError(NO_QUERIES)
        options = Options(k, exact, candidates, where, raw, progress)
        return list(self._answers(queries, options, first=len(queries)))

    def query_each(
        self,
        queries: Iterable[Query],
        *,
        k: int | None = None,
        exact: bool | None = None,
        candidates: int | None = None,
        where: str | None = None,
        raw: bool = False,
        progress: Report | None = None,
    ) -> "Iterator[Hits]":
        """Answer queries batch by batch, as they are read; for the arguments see `query_many`.

        Memory is that of a batch of queries and their answers. The first batch has 16 queries, so that answers start
        early. Each further batch is twice as large, up to gradients of 128 MB or 1,024 queries: in a larger batch
        more queries share a candidate's backward pass.
        """
        from influence.query.retriever import FIRST_BATCH, Options

        return self._answers(queries, Options(k, exact, candidates, where, raw, progress), first=FIRST_BATCH)

    def _answers(self, queries: Iterable[Query], options: "Options", first: int) -> "Iterator[Hits]":
        exact = bool(options.exact) or options.candidates is not None
        from influence.query.decision import decision_of
        from influence.query.retriever import growing
        from influence.scan.plan import batch_of

        decision = decision_of(self.recipe, self.path, options.exact, options.candidates)
        for batch in growing(queries, first, batch_of(self.store.dims)):
            examples = self._examples(batch, exact=exact, raw=options.raw)
            with self._turn:
                answers = self._retriever.hits(examples, decision, options.k, options.where, options.progress)
            yield from answers

    def score(self, queries: Sequence[Query]) -> "Scores":
        """Score every row for every query from the stored rows, or for `kfac` and `ekfac` from whole gradients.

        Returns:
            float32 [queries, rows], with their unit, what a sign means, and `magnitudes` and `caution`: whether scores
            can be numbers of nats. For more rows than fit, see `score_blocks`.
        """
        with self._turn:
            return self._retriever.every_row(self._examples(queries))

    def score_blocks(self, queries: Sequence[Query]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, scores float32 [queries, b]) for consecutive blocks of stored rows.

        Whether they can be numbers of nats is known after the last: `influence.recipes.magnitudes` says it of a query's
        largest score and log-likelihood (`capture(queries).measured`), as `score` and `score_to` do.
        """
        examples = self._examples(queries)
        yield from self._retriever.blocks(examples, None if self.recipe.baseline == "bm25" else self.capture(examples))

    def capture(self, queries: Sequence[Query]) -> "Queries":
        """Capture queries: their gradients −∇m, projected as the rows are, and their log-likelihoods.

        Raises:
            QueryError: The run is of `bm25`, which has no model; or see `query_many`.
        """
        with self._turn:
            return self._retriever.capture(self._examples(queries))

    def score_to(
        self,
        queries: Sequence[Query],
        out: str | Path,
        *,
        keep: "Keep" = "all",
        k: int = 100,
        where: str | None = None,
        cut: bool = False,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> "Answered":
        """Score every stored row for every query on the run's cluster, into a Parquet file; see `influence.scan.table`.

        Memory does not depend on the number of rows and queries. A scan that was killed resumes from `OUT.parts/`. If
        local workers would take longer to start than to compute, this process computes.

        Args:
            queries: See `query_many`.
            out: The file (.parquet).
            keep: `all`: every score, one line per row. `top`: the k best rows of each query and side. `rows`: each
                row's mean, sum, minimum, maximum and share of positive scores over all queries.
            k: With `top`: number of rows on each side.
            where: Score only rows that meet a condition; see `query_many`.
            cut: Cut long queries as the run's rows are cut, instead of refusing those beyond the model's positions.
            overwrite: Replace an existing file.
            overrides: Settings of the cluster section, `key=value` each: `cluster.workers=4`.
            progress: Called with every `Step`; a `ProgressBar` shows them.

        Raises:
            QueryError: The recipe has no stored scores, or see `influence.scan.answer`.
            Incomplete: Interrupted, or the disk is full. The same call resumes.
        """
        from influence.scan.answer import Question
        from influence.scan.score import score_to

        question = Question(self._examples(queries), keep, k, where, cut)
        return score_to(self.run_dir, question, Path(out), overwrite=overwrite, overrides=overrides, progress=progress)

    def self_influence_to(
        self,
        out: str | Path,
        *,
        where: str | None = None,
        overwrite: bool = False,
        overrides: Sequence[str] = (),
        progress: Report | None = None,
    ) -> "Answered":
        """Write `self_influence` into a Parquet file, on the run's cluster; see `score_to` for the arguments."""
        from influence.scan.answer import Question
        from influence.scan.score import score_to

        question = Question(None, where=where)
        return score_to(self.run_dir, question, Path(out), overwrite=overwrite, overrides=overrides, progress=progress)

    def self_influence(self, progress: Report | None = None) -> np.ndarray:
        """Score each stored row for itself: ⟨v, (H+λ)⁻¹v⟩, the diagonal of the matrix of all rows as queries.

        Without a Fisher (`whitened`, `graddot`, `tracin`) it is the square of a row's stored length, exact under every
        codec. With a Fisher (`logra`) it is computed from the decoded rows at their stored lengths: within a per cent
        for float16 and int8, within some tens of per cent for `bits`, which keeps the ranks.

        It is computed in this process, some rows at a time. `self_influence_to` uses the run's cluster and resumes.

        Args:
            progress: Called with every `Step`.

        Returns:
            float32 [rows], in the recipe's unit. Large for rows that other rows do not support.

        Raises:
            QueryError: With this recipe it is 1 for every row, or it cannot be computed from stored rows.
        """
        from influence.scan.score import self_scores_of

        return self_scores_of(self.run_dir, progress)

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Return the projected gradients of some rows, float32 [n, D], on the scale of the summed loss."""
        return self.store.vectors(rows)

    def meta(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return the metadata of some rows: row, id, source, uri, label, tokens, loss, norm, text."""
        return self.store.meta(rows)

    def status(self) -> dict[str, Any]:
        """Return the progress and the properties of the run, as `influence status` prints them."""
        return status(self.path)

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

        See `influence.issues.frame.issues_frame` for the arguments and for what is returned: a line a row of the run.
        """
        from influence.issues.frame import issues_frame

        return issues_frame(
            *(self.run_dir, checks),
            evaluation=evaluation,
            target=target,
            settings=settings,
            out=out,
            overwrite=overwrite,
            overrides=overrides,
            progress=progress,
        )

    def neighbours(
        self, *, settings: Sequence[str] = (), overrides: Sequence[str] = (), progress: Report | None = None
    ) -> "NeighbourGraph":
        """Return every row's nearest rows by the cosine of stored gradients: those most alike and those most opposed.

        See `influence.issues.neighbors.neighbour_graph`; `settings` are `key=value` each, as `k=20`, `kind=exact`.
        """
        from influence.issues.checks.registry import parse_settings
        from influence.issues.neighbors import neighbour_graph

        chosen = parse_settings([f"neighbours.{setting}" for setting in settings]).neighbours
        return neighbour_graph(self.run_dir, chosen, overrides, progress)

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

        See `influence.groups.delivery.deliver_groups` for the arguments; replicates, level and seed are those of
        `influence.groups.groups.GroupSettings`. `.to_pandas()` has a line a group and set.
        """
        from influence.groups.delivery import deliver_groups
        from influence.groups.groups import GroupSettings
        from influence.issues.checks.registry import settings_of

        return deliver_groups(
            *(self.run_dir, queries, by, settings_of(GroupSettings, replicates=replicates, level=level, seed=seed)),
            sets=sets,
            out=out,
            deliver=deliver,
            overwrite=overwrite,
            overrides=overrides,
            progress=progress,
        )

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

        See `influence.select.delivery.deliver_selection` for the arguments; top, per_group_cap, by, sets and dedup are
        those of `influence.select.selection.SelectSettings`.
        """
        from influence.issues.checks.registry import settings_of
        from influence.select.delivery import deliver_selection
        from influence.select.selection import SelectSettings

        cap = None if per_group_cap is None else str(per_group_cap)
        settings = settings_of(SelectSettings, top=str(top), per_group_cap=cap, by=by, sets=sets, dedup=dedup)
        return deliver_selection(
            *(self.run_dir, target, out, settings),
            words=words,
            deliver=deliver,
            overwrite=overwrite,
            overrides=overrides,
            progress=progress,
        )

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

        tables = tuple(Path(table) for table in ([drop] if isinstance(drop, str | Path) else drop))
        names = names_in(drop_issues)
        wish = Wish(tables, None if names is None else tuple(names), where, relabel)
        return export_clean(self.run_dir, wish, Path(out), overwrite=overwrite, progress=progress)

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

        undo_export(Path(cleaned), Path(out), of_run=self.run_dir, overwrite=overwrite, progress=progress)

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

        return compare(self, other, queries, k=k, progress=progress)

    def _examples(self, queries: Iterable[Query], *, exact: bool = False, raw: bool = False) -> tuple[Example, ...]:
        from influence.query.examples import query_examples

        return query_examples(self.run_dir, queries, exact=exact, raw=raw)

    def close(self) -> None:
        """Release the model and the index. They are loaded again at the next use."""
        with self._turn:
            if "session" in self.__dict__:
                self.session.close()
            for name in ("session", "_retriever"):
                self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.rows:,} rows × {self.store.dims:,} columns, {self.recipe.summary})"


def plan(config: RunConfig | str | Path, *, overrides: Sequence[str] = ()) -> "Plan":
    """Estimate a build from the data's size and a short measurement. Writes nothing.

    Local builds are measured in this process, others on one worker of their cluster.

    Raises:
        InfluenceError: An error in the settings, the data or the model that the build would raise too.
    """
    from influence.estimate.forecast import plan_run

    return plan_run(_configured(config, overrides))


def _configured(config: RunConfig | str | Path, overrides: Sequence[str]) -> RunConfig:
    return override_config(config, overrides) if isinstance(config, RunConfig) else load_config(config, overrides)


__all__ = ["Plan", "Run", "as_example", "build", "open", "plan", "status"]
