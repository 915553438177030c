"""The capture of one run, opened once in a process: model, tokeniser, data set, hooks. Workers and queries share it.

Batches are cut by length under the token budget, with the plan's settings alone, so a shard's bytes don't depend on who
computes it.
"""

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from influence.axes import ModuleColumns
from influence.curvature.covariance import widths_of
from influence.curvature.kfac import Eigenbasis
from influence.curvature.whitening import fold_for
from influence.data.dataset import Rows, open_rows
from influence.data.example import Example, place_of
from influence.data.tokenise import Part, readable, tokenise
from influence.errors import ClusterError, DataError, QueryError
from influence.gradients.capture import Capture
from influence.gradients.hooks import Hooks, Measure
from influence.gradients.inner_products import InnerProducts
from influence.gradients.projection import Projection
from influence.model.layers import tracked_layers
from influence.model.load import load_model, load_tokeniser, pad_id, resolve_dtype
from influence.pipeline.batches import run_batches
from influence.pipeline.spec import CaptureSpec
from influence.pipeline.tensors import load_tensors
from influence.pipeline.transfer import Piece
from influence.task import measurement, task_for

WHOLE = 2**20
"""Tokens a query may have where the model's configuration names no limit."""


class Session:
    """One process's model under capture.

    Attributes:
        asked: The specification it was opened with.
        spec: The same with dtype and device decided.
        pad: The token that fills a batch.
        task: What is differentiated.
        layers: The tracked layers.
        rows_capture: Gives the run's rows, projected.
        tokenising: Held while the tokeniser is in use: a fast tokeniser may not be entered twice.
        computing: Held while a shard is captured, so that a worker's two task slots take turns.
    """

    def __init__(self, spec: CaptureSpec) -> None:
        self.asked = spec
        self.device = torch.device(_device(spec))
        dtype = resolve_dtype(spec.model, self.device)
        self.spec = spec.resolved(str(dtype).removeprefix("torch."), self.device.type)  # type: ignore[arg-type]
        self.model = load_model(spec.model, self.device, dtype)
        self.tokeniser = load_tokeniser(spec.model)
        self.pad = pad_id(self.model, self.tokeniser)
        self._embeddings: int = self.model.get_input_embeddings().weight.shape[0]
        self.task = task_for(spec.model.kind, spec.task)
        self.layers = tracked_layers(self.model, spec.model.layers)
        self.rows_capture = self._projected(spec)
        self._hooks: Hooks = self.rows_capture.__enter__()
        self.tokenising = threading.Lock()
        self.computing = threading.Lock()

    @property
    def modules(self) -> tuple[ModuleColumns, ...]:
        """Which columns of a row belong to which layer."""
        return self.rows_capture.modules

    @property
    def dims(self) -> int:
        """D, the columns of a row."""
        return self.rows_capture.dims

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch, decided."""
        assert self.spec.token_budget is not None
        return self.spec.token_budget

    def serves(self, spec: CaptureSpec) -> bool:
        """Whether this model, data and task are what a specification asks for, whatever its projection."""
        return spec.unprojected() in (self.asked.unprojected(), self.spec.unprojected())

    def project(self, spec: CaptureSpec) -> None:
        """Project rows as another specification of the same model and data says."""
        if (spec.projection, spec.factors) == (self.spec.projection, self.spec.factors):
            return
        self.rows_capture = self._projected(spec)
        self.spec = self.spec.model_copy(update={"projection": spec.projection, "factors": spec.factors})
        self.set_hooks(self.rows_capture)

    def set_hooks(self, hooks: Hooks) -> None:
        """Set hooks on the model in the place of those that are set."""
        if hooks is not self._hooks:
            self._hooks.__exit__(None, None, None)
            self._hooks = hooks.__enter__()

    def close(self) -> None:
        """Remove the hooks; the session can't be used afterwards."""
        self._hooks.__exit__(None, None, None)

    def _projected(self, spec: CaptureSpec) -> Capture:
        fold = None
        if spec.factors is not None:
            tensors = load_tensors(spec.factors.path, spec.factors.fingerprint)
            basis = Eigenbasis.from_tensors(widths_of(self.layers), spec.factors.settings, tensors)
            fold = fold_for(spec.projection, basis)
        return Capture(self.model, self.layers, Projection(spec.projection, fold))

    @cached_property
    def rows(self) -> Rows:
        """The data set, opened when first asked for: a query needs none."""
        return open_rows(self.spec.data)

    @cached_property
    def label_names(self) -> dict[str, int] | None:
        """A classifier's label names, as its configuration has them."""
        names = (
            getattr(self.model.config, "label2id", None) if self.spec.model.kind == "sequence_classification" else None
        )
        return {str(name): int(label) for name, label in names.items()} if names else None

    @property
    def device_name(self) -> str:
        """The device in words, for people."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @property
    def longest(self) -> int | None:
        """The most positions the model has, where its configuration says so."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def tokenise(self, examples: Sequence[Example], *, whole: bool = False) -> list[Part]:
        """Return the examples' tokens in parts, `position` counting within `examples`.

        Args:
            examples: Rows or queries.
            whole: Neither truncate nor split: a query's completion stands at its end.

        Raises:
            DataError: An example can't be tokenised, a part is longer than the model has positions, or a token has no
                embedding; the example is named.
        """
        settings = self.spec.data
        if whole:
            limit = WHOLE if self.longest is None else self.longest + 1
            settings = settings.model_copy(update={"max_tokens": limit, "long_rows": "truncate"})
        with self.tokenising:
            parts = tokenise(examples, self.tokeniser, settings, self.spec.model.kind, self.label_names)
        for part in parts:
            if self.longest is not None and len(part.input_ids) > self.longest:
                do = "Shorten it." if whole else f"Set data.max_tokens to {self.longest} or less."
                found = "more" if whole else f"{len(part.input_ids)}"
                where = place_of(examples[part.position])
                raise DataError(f"{where} has {found} tokens, and the model has {self.longest} positions. {do}")
            highest = int(part.input_ids.max(initial=0))
            if highest >= self._embeddings:
                written = self.tokeniser.convert_ids_to_tokens(highest)
                raise DataError(
                    f"{place_of(examples[part.position])} has token {highest} ({written!r}), and the model has "
                    f"embeddings for {self._embeddings:,} tokens. Set model.tokeniser to the one that this model was "
                    "trained with; if it is that one, leave the token out of this text."
                )
        return parts

    def texts(self, examples: Sequence[Example]) -> list[str]:
        """Return what people read of each example."""
        with self.tokenising:
            return [readable(example, self.tokeniser) for example in examples]

    def losses(self, parts: Sequence[Part], names: Sequence[str]) -> Iterator[Piece]:
        """Capture ∇ℓ of every part: what a training row stores. See `capture`."""
        return self.capture(self.task.example_loss, parts, names)

    def query_gradients(
        self, queries: Sequence[Example], whole: Capture | None = None
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Capture queries, whole and in a few batches.

        Args:
            queries: With what they are asked against, where they are.
            whole: Gives other gradients than the run's projected ones, such as unprojected ones.

        Returns:
            −∇m of every query, [m, D] float32 on the CPU; log p of what was said, [m] float64, in nats; and of what it
            is asked against, NaN where it isn't. The measurement m is the first, or their difference.

        Raises:
            QueryError: A query has no scored token; it is named.
            DataError: A query can't be tokenised, or is longer than the model has positions.
        """
        for query in queries:
            if query.label is not None and self.spec.model.kind == "causal_lm":
                raise QueryError(
                    f"{place_of(query)} has a label ({query.label!r}), which only a classifier is asked about; this "
                    "model is a causal language model. Leave the label out, or ask with a prompt and a completion."
                )
        against = [number for number, query in enumerate(queries) if query.contrast is not None]
        examples = [*queries, *(query.contrast for query in queries if query.contrast is not None)]
        parts = self.tokenise(examples, whole=True)
        for part in parts:
            if not part.scored:
                raise QueryError(
                    f"{place_of(examples[part.position])} has no scored token: its completion is empty, or it has "
                    "no prompt and its completion is a single token. Give both, so that something is predicted."
                )
        names = [place_of(example) for example in examples]
        gradients = torch.zeros(len(examples), (whole or self.rows_capture).dims)
        said = np.zeros(len(examples))
        for piece in self.capture(self._negative_measurement, parts, names, whole):
            where = [part.position for part in piece.parts]
            gradients[where] = piece.rows.float()
            said[where] = -piece.values.double().numpy()
        count = len(queries)
        gradients[against] -= gradients[count:]
        instead = np.full(count, np.nan)
        instead[against] = said[count:]
        return gradients[:count], said[:count], instead

    def capture(
        self,
        measure: Measure,
        parts: Sequence[Part],
        names: Sequence[str],
        hooks: Capture | InnerProducts | None = None,
    ) -> Iterator[Piece]:
        """Capture the gradient of every part's measured value, batch by batch; see `batches.run_batches`.

        Args:
            measure: What is differentiated, one value a part.
            parts: With at least one scored token each.
            names: What to call the example at each position in a message.
            hooks: What is kept of a gradient; the run's projected rows where nothing else is asked for.
        """
        chosen = hooks or self.rows_capture
        self.set_hooks(chosen)
        return run_batches(
            lambda batch: chosen(measure, batch),
            parts,
            names,
            width=chosen.width,
            budget=self.token_budget,
            pad=self.pad,
            device=self.device,
        )

    def _negative_measurement(self, model: object, batch: object) -> Tensor:
        return -measurement(self.task, model, batch)


def _device(spec: CaptureSpec) -> str:
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ClusterError(
            "This process was to compute on CUDA, but torch finds no CUDA device. Set cluster.device to cpu or auto."
        )
    return "cuda" if spec.device != "cpu" and torch.cuda.is_available() else "cpu"
