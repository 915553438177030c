"""A run directory, built or opened: what a user holds in a notebook.

    run = influence.build("run.yaml", out="runs/x")       # or influence.open("runs/x")
    hits = run.query(prompt="…", completion="…", k=10)    # Hits: .promoting, .opposing
    scores = run.score([{"prompt": "…", "completion": "…"}])

Queries run in the calling process, through the same session as the rows did.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from influence.answering import FIRST_BATCH, Answering, Options, growing
from influence.artifacts.place import absolute, run_path
from influence.capture.opening import open_session
from influence.capture.queries import query_gradients
from influence.capture.session import Session
from influence.config import RunConfig, load_config, override_config
from influence.data.example import Example
from influence.diagnosing import Diagnosing
from influence.engine.progress import Report
from influence.errors import Incomplete, QueryError
from influence.estimate.forecast import Plan, plan_run
from influence.query.asked import Query, as_example
from influence.query.attribute import NO_QUERIES, Queries, query_vectors
from influence.query.baseline import lexical_blocks
from influence.query.decision import decision_of
from influence.query.hits import Hits
from influence.query.index_errors import index_errors
from influence.query.scores import Scores
from influence.recipes import sign_rule
from influence.scan.plan import batch_of
from influence.scanning import Scanning
from influence.stages.build import build_run
from influence.stages.configuration import open_configuration
from influence.stages.index import load_comparison, scored_blocks
from influence.stages.status import missing_parts, status
from influence.store.manifest import Manifest
from influence.store.reader import Store
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


class Run(Scanning, Diagnosing):
    """One run directory. The model is loaded by the first query, not when the run is opened.

    Several threads can use one run. Their queries are computed one after another, with one model.

    Attributes:
        path: The run directory.
        config: The resolved configuration.
        store: Its rows.
    """

    def __init__(
        self, path: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto", trust: bool = False
    ) -> None:
        # Absolute, so that a later change of the working directory loses nothing.
        self.path = absolute(run_path(path))
        self._device: Literal["auto", "cpu", "cuda"] = device
        self._turn = threading.RLock()
        self.store = Store(self.path)
        self.config = open_configuration(self.path, self.manifest, trust=trust)
        missing = missing_parts(self.path, self.manifest, self.config)
        if missing:
            raise Incomplete(f"{self.path} lacks its {' and its '.join(missing)}. Run the same build again to make it.")

    @property
    def manifest(self) -> Manifest:
        """The manifest: format version, fingerprint, layers, number of rows."""
        return self.store.manifest

    @property
    def rows(self) -> int:
        """N, the number of rows of the data set."""
        return self.store.rows

    @cached_property
    def comparison(self) -> Compared:
        """The recipe with its curvature, loaded at the first use."""
        return load_comparison(self.path, self.manifest, self.recipe.stored)

    @cached_property
    def session(self) -> Session:
        """The model with its hooks in this process, loaded at the first use.

        Raises:
            FingerprintMismatch: The model, its tokeniser, a checkpoint or an optimiser's state has changed since the
                rows were captured, or trak's projector draws other numbers here.
        """
        return open_session(self.config, self.path, self.manifest, self._device)

    @cached_property
    def _answering(self) -> Answering:
        return Answering(self)

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
    ) -> Hits:
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
    ) -> list[Hits]:
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
    ) -> Iterator[Hits]:
        """Answer queries batch by batch, as they are read; for the arguments see `query_many`.

        Memory is that of a batch of queries and their answers. The first batch has 16 queries, so that answers start
        early. Each further batch is twice as large, up to gradients of 128 MB or 1,024 queries: in a larger batch
        more queries share a candidate's backward pass.
        """
        return self._answers(queries, Options(k, exact, candidates, where, raw, progress), first=FIRST_BATCH)

    def _answers(self, queries: Iterable[Query], options: Options, first: int) -> Iterator[Hits]:
        exact = bool(options.exact) or options.candidates is not None
        decision = decision_of(self.recipe, self.path, options.exact, options.candidates)
        for batch in growing(queries, first, batch_of(self.store.dims)):
            examples = self._asked(batch, exact=exact, raw=options.raw)
            with self._turn:
                answers = self._answering.hits(examples, decision, options.k, options.where, options.progress)
            yield from answers

    def score(self, queries: Sequence[Query]) -> Scores:
        """Score every row for every query from the stored rows, or for `kfac` and `ekfac` from whole gradients.

        Returns:
            float32 [queries, rows], with their unit, what a sign means, and `magnitudes` and `caution`: whether scores
            can be numbers of nats. For more rows than fit, see `score_blocks`.
        """
        examples = self._asked(queries)
        captured = None if self.recipe.baseline == "bm25" else self.capture(examples)
        if self.recipe.curvature.whole:
            with self._turn:
                out = self._answering.scorer(self.recipe.decision).every_row(examples)
        else:
            out = np.empty((len(examples), self.rows), dtype=np.float32)
            for first, block in self._blocks(examples, captured):
                out[:, first : first + block.shape[1]] = block
        recipe = self.recipe if self.recipe.curvature.whole else self.recipe.stored
        unit, sign = recipe.unit_under(self.manifest.reduction), sign_rule(self.recipe.baseline)
        contrasted = [example.contrast is not None for example in examples]
        return Scores.of(out, unit, sign, None if captured is None else captured.measured, contrasted)

    def score_blocks(self, queries: Sequence[Query]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, scores float32 [queries, b]) for consecutive blocks of stored rows.

        Whether they can be numbers of nats is known after the last: `influence.recipe.magnitudes` says it of a query's
        largest score and log-likelihood (`capture(queries).measured`), as `score` and `score_to` do.
        """
        examples = self._asked(queries)
        yield from self._blocks(examples, None if self.recipe.baseline == "bm25" else self.capture(examples))

    def _blocks(self, examples: Sequence[Example], captured: Queries | None) -> Iterator[tuple[int, np.ndarray]]:
        if captured is None:
            yield from lexical_blocks(examples, self._answering.words)
        else:
            yield from scored_blocks(self.store, self.comparison, query_vectors(captured, self.comparison))

    def capture(self, queries: Sequence[Query]) -> Queries:
        """Capture queries: their gradients −∇m, projected as the rows are, and their log-likelihoods.

        Raises:
            QueryError: The run is of `bm25`, which has no model; or see `query_many`.
        """
        examples = self._asked(queries)
        if self.recipe.baseline == "bm25":
            raise QueryError(f"{self.path} compares words and captures nothing: take query or score.")
        with self._turn:
            return Queries(examples, *query_gradients(self.session, examples))

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Return the projected gradients of some rows, float32 [n, D], on the scale of the summed loss."""
        return self.store.vectors(rows)

    def meta(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return the metadata of some rows: row, id, source, uri, label, tokens, loss, norm, text."""
        return self.store.meta(rows)

    def status(self) -> dict[str, Any]:
        """Return the progress and the properties of the run, as `influence status` prints them."""
        return status(self.path)

    def close(self) -> None:
        """Release the model and the index. They are loaded again at the next use."""
        with self._turn:
            if "session" in self.__dict__:
                self.session.close()
            for name in ("session", "comparison", "_answering"):
                self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.rows:,} rows × {self.store.dims:,} columns, {self.recipe.summary})"


def plan(config: RunConfig | str | Path, *, overrides: Sequence[str] = ()) -> Plan:
    """Estimate a build from the data's size and a short measurement. Writes nothing.

    Local builds are measured in this process, others on one worker of their cluster.

    Raises:
        InfluenceError: An error in the settings, the data or the model that the build would raise too.
    """
    return plan_run(_configured(config, overrides))


def _configured(config: RunConfig | str | Path, overrides: Sequence[str]) -> RunConfig:
    return override_config(config, overrides) if isinstance(config, RunConfig) else load_config(config, overrides)


__all__ = ["Plan", "Run", "as_example", "build", "open", "plan", "status"]
