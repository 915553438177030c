"""A run directory, built or opened: what a user holds in a notebook.

    run = influence.build("run.yaml", out="runs/x")       # or influence.open("runs/x")
    hits = run.query(prompt="…", completion="…", k=10)    # Hits: .promoting, .opposing
    scores = run.score([{"prompt": "…", "completion": "…"}])

Queries run in the calling process, through the same session as the rows did.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

import index.persist
import index.search
from index.build import FlatIndex
from index.exact import exact_search_scores
from index.neighbours import Neighbours
from influence.baselines import bm25
from influence.baselines.bm25 import BM25
from influence.config import RunConfig, load_config, override_config
from influence.data.example import Example
from influence.errors import FingerprintMismatch, Incomplete
from influence.pipeline.build import CONFIG, build_run
from influence.pipeline.drawn import drawn_of
from influence.pipeline.exact_stage import ExactScorer
from influence.pipeline.factor_stage import factor_file, load_kronecker
from influence.pipeline.fingerprint import digested
from influence.pipeline.forecast import Plan, plan_run
from influence.pipeline.index_stage import FOLDER as INDEX_FOLDER
from influence.pipeline.index_stage import index_fingerprint, load_comparison, scored_blocks
from influence.pipeline.progress import Report
from influence.pipeline.query_stage import query_gradients
from influence.pipeline.session import Session
from influence.pipeline.spec import CaptureSpec
from influence.pipeline.standing import missing_parts, status
from influence.query.asked import Query, as_example
from influence.query.attribute import Queries, attribute, decide, named, propose, query_vectors
from influence.query.decision import check_lexical, checked_k, decision_of
from influence.query.hits import Hits
from influence.query.index_errors import index_errors
from influence.recipe import EXTRA_COPY, ExactSettings, Recipe
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
    """Build a run, or what is missing of it, and open it.

    Args:
        config: A configuration, or the path of a run file.
        out: The run directory.
        overrides: `key=value` each, as `--set` takes them.
        progress: Called with every `Step`; a `ProgressBar` shows them.

    Raises:
        InfluenceError: See `influence.pipeline.build.build_run`. `Incomplete` means: the same call goes on from there.
    """
    with index_errors():
        build_run(_configured(config, overrides), Path(out), progress)
    return Run(out)


def open(path: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto") -> "Run":
    """Open a finished run.

    Args:
        path: The run directory.
        device: Where queries are computed; need not be where the rows were.

    Raises:
        StoreError: There is no run, or its files can't be used.
        Incomplete: Something of it is missing; the same build makes it.
    """
    return Run(path, device=device)


class Run:
    """One run directory. Opening it loads no model; the first query does.

    Attributes:
        path: The run directory.
        config: Its whole resolved configuration.
        store: Its rows.
    """

    def __init__(self, path: str | Path, *, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        self.path = Path(path)
        self._device: Literal["auto", "cpu", "cuda"] = device
        self.store = Store(self.path)
        self.config = load_config(self.path / CONFIG)
        missing = missing_parts(self.path, self.manifest, self.config)
        if missing:
            raise Incomplete(f"{self.path} lacks its {' and its '.join(missing)}. Run the same build again to make it.")

    @property
    def manifest(self) -> Manifest:
        """What the rows are."""
        return self.store.manifest

    @property
    def recipe(self) -> Recipe:
        """How rows are scored."""
        return self.config.recipe

    @property
    def rows(self) -> int:
        """N, the rows of the data set."""
        return self.store.rows

    @cached_property
    def comparison(self) -> Compared:
        """The recipe with its curvature, loaded when first needed."""
        return load_comparison(self.path, self.manifest, self.recipe.stored)

    @cached_property
    def session(self) -> Session:
        """The model under capture, loaded when first needed, in this process.

        Raises:
            FingerprintMismatch: The model, its tokeniser, a checkpoint or an optimiser's state has changed since the
                rows were captured, or trak's projector draws other numbers here.
        """
        parts = self.manifest.fingerprint_parts
        for part, (what, found) in digested(self.config).items():
            if found != parts[part]:
                raise FingerprintMismatch(
                    f"The {what} has changed since {self.path} was built: its digest is {found}, the manifest expects "
                    f"{parts[part]}. Put the old one back, or build another run."
                )
        factors = factor_file(self.path, self.manifest, self.recipe)
        spec = CaptureSpec.of(self.config, factors, drawn_of(parts))
        session = Session(spec.model_copy(update={"device": self._device}))
        if session.modules != self.manifest.modules:
            raise FingerprintMismatch(
                f"The model's tracked layers come to {session.dims} columns, {self.path} has {self.manifest.dims} "
                "or other "
                "layers: this is another version of transformers or of this package than the run was built with."
            )
        return session

    def query(
        self,
        prompt: str = "",
        completion: str = "",
        *,
        contrast: str | None = None,
        k: int | None = None,
        id: str | None = None,
        exact: bool | None = None,
        candidates: int | None = None,
    ) -> Hits:
        """Ask which rows made the model say `completion` after `prompt`, or rather than `contrast`.

        See `query_many` for the other arguments.

        Returns:
            The k rows that promote it most and the k that oppose it most.

        Raises:
            QueryError: Nothing in the completion is scored, there are fewer than k rows, or see `query_many`.
        """
        asked = Example.query(prompt, completion, id=id, contrast=contrast)
        return self.query_many([asked], k=k, exact=exact, candidates=candidates)[0]

    def query_many(
        self,
        queries: Sequence[Query],
        *,
        k: int | None = None,
        exact: bool | None = None,
        candidates: int | None = None,
        progress: Report | None = None,
    ) -> list[Hits]:
        """Answer several queries from one pass over them.

        Args:
            queries: What is asked.
            k: Rows on each side; unset, 10 or as many as there are (or candidates).
            exact: Whether the index's proposals are scored again from whole gradients; unset, as the recipe says.
            candidates: How many proposals of each side; unset, as the recipe says.
            progress: Called with every `Step` of exact scoring; a `ProgressBar` shows them.

        Raises:
            QueryError: A query can't be answered; k, or the candidates for it, are too few or too many; or exact scores
                are asked of a run that has no factors for them.
        """
        decision = decision_of(self.recipe, self.path, exact, candidates)
        k = checked_k(k, self.rows, self.path, decision)
        captured = self.capture(queries)
        with index_errors():
            if decision.kind == "none":
                return attribute(captured, self.store, self.comparison, self._search, k)
            if decision.candidates is None:
                found = self._scorer(decision, progress).every_row(captured.examples)
                everyone = [np.arange(self.rows)] * len(found)
                return decide(captured, self.store, everyone, list(found), k, **self._told(decision))
            words = self._words if decision.lexical else None
            proposed = propose(captured, self.comparison, self._search, min(decision.candidates, self.rows), words)
            found = self._scorer(decision, progress).candidates(captured.examples, proposed)
            return decide(captured, self.store, proposed, found, k, **self._told(decision))

    def score(self, queries: Sequence[Query]) -> np.ndarray:
        """Score every row for every query, without proposals: by the stored rows, or by K-FAC's whole gradients.

        Returns:
            float32 [queries, rows], in the recipe's unit; positive promotes. For more rows than fit, see
            `score_blocks`.
        """
        if self.recipe.curvature.whole:
            return self._scorer(self.recipe.decision).every_row(self.capture(queries).examples)
        out = np.empty((len(queries), self.rows), dtype=np.float32)
        for first, block in self.score_blocks(queries):
            out[:, first : first + block.shape[1]] = block
        return out

    def score_blocks(self, queries: Sequence[Query]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, scores float32 [queries, b]) for consecutive blocks of stored rows, read as they come."""
        captured = self.capture(queries)
        yield from scored_blocks(self.store, self.comparison, query_vectors(captured, self.comparison))

    def capture(self, queries: Sequence[Query]) -> Queries:
        """Capture queries: their gradients −∇m, projected as the rows are, and what the model makes of them."""
        examples = named([as_example(query) for query in queries])
        return Queries(examples, *query_gradients(self.session, examples))

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Return the projected gradients of some rows, float32 [n, D], on the scale of the summed loss."""
        return self.store.vectors(rows)

    def meta(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return the metadata of some rows: row, id, source, uri, label, tokens, loss, norm, text."""
        return self.store.meta(rows)

    def status(self) -> dict[str, Any]:
        """Return how far the run is; see `status`."""
        return status(self.path)

    def close(self) -> None:
        """Let go of the model and the index; they come back when needed."""
        if "session" in self.__dict__:
            self.session.close()
        for name in ("session", "comparison", "_index", "_words"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.rows:,} rows × {self.store.dims:,} columns, {self.recipe.summary})"

    @cached_property
    def _words(self) -> BM25:
        """BM25 over every row's text, prepared when first needed."""
        check_lexical(self.rows)
        return bm25.fit(self.store.texts())

    def _scorer(self, decision: ExactSettings, progress: Report | None = None) -> ExactScorer:
        kind: Literal["kfac", "ekfac"] = "kfac" if decision.kind == "kfac" else "ekfac"
        curvature = load_kronecker(self.path, self.manifest, self.recipe, kind, decision.damping)
        return ExactScorer(self.session, curvature, self.rows, decision.rank, progress)

    def _told(self, decision: ExactSettings) -> dict[str, str]:
        decided = self.recipe.model_copy(update={"exact": decision})
        return {"summary": f"{self.recipe.summary}; {decided.exact_summary}", "unit": EXTRA_COPY}

    @cached_property
    def _index(self) -> FlatIndex:
        folder, wanted = self.path / INDEX_FOLDER, index_fingerprint(self.manifest, self.recipe.stored)
        return index.persist.load(folder, wanted, self.config.index.device)

    def _search(self, vectors: np.ndarray, k: int) -> Neighbours:
        if self.config.index.kind == "exact":
            return exact_search_scores(scored_blocks(self.store, self.comparison, vectors), len(vectors), k)
        return index.search.search(self._index, vectors, k)


def plan(config: RunConfig | str | Path, *, overrides: Sequence[str] = ()) -> Plan:
    """Say what a build would take, from the data's size and a short measurement on one worker. Writes nothing.

    Raises:
        InfluenceError: What the build itself would trip over in the settings, the data or the model.
    """
    return plan_run(_configured(config, overrides))


def _configured(config: RunConfig | str | Path, overrides: Sequence[str]) -> RunConfig:
    return override_config(config, overrides) if isinstance(config, RunConfig) else load_config(config, overrides)


__all__ = ["Plan", "Run", "as_example", "build", "open", "plan", "status"]
