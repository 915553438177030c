"""The capture of one run, opened once in a process: model, tokeniser, data set, hooks. Workers and queries share it.

Batches are cut by length under the token budget, with the plan's settings alone, so a shard's bytes don't depend on who
computes it. On a GPU rows leave through pinned buffers while the next batch computes, and nothing waits for the device
before a later batch is under way.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from influence.axes import ModuleColumns
from influence.config import RunConfig
from influence.data.batch import MAX_ROWS, collate, cut_batches
from influence.data.dataset import DataSettings, Rows, open_rows
from influence.data.example import Example, place_of
from influence.data.tokenise import Part, readable, tokenise
from influence.errors import CaptureError, ClusterError, DataError, QueryError
from influence.gradients.capture import Capture
from influence.gradients.hooks import Measure
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import tracked_layers
from influence.model.load import ModelSettings, load_model, load_tokeniser, pad_id, resolve_dtype
from influence.pipeline.leaving import Leaving, Piece
from influence.pipeline.memory import out_of_memory
from influence.task import TaskSettings, measurement, task_for

log = logging.getLogger(__name__)

BATCH_BYTES = 256 * 2**20
"""The float32 rows of a batch take at most this, unless one row alone takes more."""
TOKEN_BUDGET = {"cpu": 2_048, "cuda": 16_384}
"""Padded tokens of a batch where nobody sets them: on a CPU activations stay in the cache, on a GPU they fill it."""
LAG = 2
"""Batches whose rows are still on their way out of a GPU."""
WHOLE = 2**20
"""Tokens a query may have where the model's configuration names no limit."""


class CaptureSpec(BaseModel):
    """Everything that decides a row, and nothing else; small, and sent to workers with their tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    data: DataSettings
    task: TaskSettings
    projection: ProjectionSettings
    token_budget: int | None
    threads: int
    device: Literal["auto", "cpu", "cuda"]

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """Return the part of a configuration that decides its rows."""
        return cls(
            model=config.model,
            data=config.data,
            task=config.task,
            projection=config.recipe.projection,
            token_budget=config.cluster.token_budget,
            threads=config.cluster.threads_per_worker,
            device=config.cluster.device,
        )

    def resolved(self, dtype: str, device: Literal["cpu", "cuda"]) -> "CaptureSpec":
        """Return the specification with everything decided that was left to the device."""
        model = self.model.model_copy(update={"dtype": dtype})
        budget = self.token_budget or TOKEN_BUDGET[device]
        return self.model_copy(update={"model": model, "device": device, "token_budget": budget})


class Session:
    """One process's model under capture.

    Attributes:
        asked: The specification it was opened with.
        spec: The same with dtype and device decided.
        modules: Which columns of a row belong to which layer.
        dims: D.
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
        self._pad = pad_id(self.model, self.tokeniser)
        self._embeddings: int = self.model.get_input_embeddings().weight.shape[0]
        self.task = task_for(spec.model.kind, spec.task)
        self.layers = tracked_layers(self.model, spec.model.layers)
        self._capture = Capture(self.model, self.layers, Projection(spec.projection))
        self._capture.__enter__()
        self.modules: tuple[ModuleColumns, ...] = self._capture.modules
        self.dims = self._capture.dims
        self.tokenising = threading.Lock()
        self.computing = threading.Lock()

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch, decided."""
        assert self.spec.token_budget is not None
        return self.spec.token_budget

    def close(self) -> None:
        """Remove the hooks; the session can't be used afterwards."""
        self._capture.__exit__(None, None, None)

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
                raise DataError(
                    f"{place_of(examples[part.position])} has token {highest}, and the model has embeddings for "
                    f"{self._embeddings:,}: the tokeniser (model.tokeniser) has tokens that the model was not given."
                )
        return parts

    def texts(self, examples: Sequence[Example]) -> list[str]:
        """Return what people read of each example."""
        with self.tokenising:
            return [readable(example, self.tokeniser) for example in examples]

    def losses(self, parts: Sequence[Part], names: Sequence[str]) -> Iterator[Piece]:
        """Capture ∇ℓ of every part: what a training row stores. See `capture`."""
        return self.capture(self.task.example_loss, parts, names)

    def queries(self, parts: Sequence[Part], names: Sequence[str]) -> Iterator[Piece]:
        """Capture −∇m of every part, m the measurement; the pieces' values are −m. See `capture`."""
        return self.capture(lambda model, batch: -measurement(self.task, model, batch), parts, names)

    def query_gradients(self, examples: Sequence[Example]) -> tuple[Tensor, np.ndarray]:
        """Capture queries, whole and in a few batches.

        Returns:
            −∇m of every query, [m, D] float32 on the CPU, and m, [m] float64, in nats.

        Raises:
            QueryError: A query has no scored token; it is named.
            DataError: A query can't be tokenised, or is longer than the model has positions.
        """
        parts = self.tokenise(examples, whole=True)
        for part in parts:
            if not part.scored:
                raise QueryError(
                    f"{place_of(examples[part.position])} has no scored token: its completion is empty, or it has "
                    "no prompt "
                    "and its completion is a single token. Give both, so that something is predicted."
                )
        names = [place_of(example) for example in examples]
        gradients, values = torch.zeros(len(examples), self.dims), np.zeros(len(examples))
        for piece in self.queries(parts, names):
            where = [part.position for part in piece.parts]
            gradients[where] = piece.rows.float()
            values[where] = -piece.values.double().numpy()
        return gradients, values

    def capture(self, measure: Measure, parts: Sequence[Part], names: Sequence[str]) -> Iterator[Piece]:
        """Capture the gradient of every part's measured value, batch by batch.

        When memory runs out the budget halves, with a log line, for what is left of these parts; the rows stay the same
        to rounding.

        Args:
            measure: What is differentiated, one value a part.
            parts: With at least one scored token each.
            names: What to call the example at each position in a message.

        Raises:
            CaptureError: A single part doesn't fit into memory; its example is named.
        """
        budget = self.token_budget
        todo = deque(self._cut(list(parts), budget))
        leaving: deque[Leaving] = deque()
        while todo:
            chosen = todo.popleft()
            piece = self._try(measure, chosen)
            if piece is None:
                leaving_now = list(leaving)
                leaving.clear()
                for earlier in leaving_now:
                    yield earlier.arrived()
                if len(chosen) == 1:
                    raise CaptureError(
                        f"{names[chosen[0].position]} has {len(chosen[0].input_ids)} tokens and does not fit into "
                        "the memory of "
                        f"{self.device_name} even alone. Lower data.max_tokens, or set model.gradient_checkpointing."
                    )
                budget = max(2, min(budget, _padded(chosen)) // 2)
                log.warning("Out of memory at %d padded tokens: the token budget is now %d.", _padded(chosen), budget)
                todo = deque(self._cut([*chosen, *(part for batch in todo for part in batch)], budget))
                continue
            leaving.append(piece)
            if self.device.type != "cuda" or len(leaving) > LAG:
                yield leaving.popleft().arrived()
        while leaving:
            yield leaving.popleft().arrived()

    def _cut(self, parts: list[Part], budget: int) -> list[list[Part]]:
        most = max(1, min(MAX_ROWS, BATCH_BYTES // (4 * self.dims)))
        cut = cut_batches([len(part.input_ids) for part in parts], budget, max_rows=most)
        return [[parts[index] for index in batch] for batch in cut]

    def _try(self, measure: Measure, chosen: list[Part]) -> "Leaving | None":
        """Capture one batch, or return None where memory runs out. The failed attempt's tensors are gone on return."""
        try:
            return self._captured(measure, chosen)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _captured(self, measure: Measure, chosen: list[Part]) -> "Leaving":
        batch = collate(chosen, self._pad).to(self.device)
        rows, values = self._capture(measure, batch)
        return Leaving(tuple(chosen), rows, values)


def _padded(parts: Sequence[Part]) -> int:
    return len(parts) * max(len(part.input_ids) for part in parts)


def _device(spec: CaptureSpec) -> str:
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ClusterError(
            "This process was to compute on CUDA, but torch finds no CUDA device. Set cluster.device to cpu or auto."
        )
    return "cuda" if spec.device != "cpu" and torch.cuda.is_available() else "cpu"
