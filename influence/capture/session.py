"""The capture of one run, opened once in a process: model, tokeniser, data set, hooks. Workers and queries share it.

Batches are cut by length under the token budget, with the plan's settings alone, so a shard's bytes don't depend on who
computes it.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.baselines.repsim import HiddenStates
from influence.capture.batches import Compute, run_batches
from influence.capture.drawn import check_drawn
from influence.capture.fingerprint import check_digests
from influence.capture.folding import projection_of
from influence.capture.spec import CaptureSpec
from influence.capture.transfer import Piece
from influence.data.classes import check_class_order
from influence.data.dataset import Rows, open_rows
from influence.data.example import Example, place_of
from influence.data.tokenise import Part, readable, tokenise
from influence.errors import ClusterError, DataError
from influence.gradients.adam import denominators
from influence.gradients.capture import Capture
from influence.gradients.hooks import Hooks, Measure
from influence.gradients.inner_products import InnerProducts
from influence.gradients.optimiser import read_second_moments
from influence.model.checkpoints import load_weights
from influence.model.layers import tracked_layers
from influence.model.load import load_model, load_tokeniser, pad_id, resolve_dtype
from influence.model.placement import first_device
from influence.model.positions import max_positions
from influence.task import row_loss, row_weight, task_for
from influence.vectors.ensemble import side_by_side

Hooked = Capture | InnerProducts | HiddenStates
"""What turns a batch into one row an example."""
PROJECTING = ("projection", "factors", "drawn")
"""The parts of a specification that may change without loading the model anew."""
WHOLE = 2**20
"""Tokens a query may have where the model's configuration names no limit."""


class Session:
    """One process's model under capture.

    Attributes:
        asked: The specification it was opened with.
        spec: The same with dtype and device decided.
        pad: The token that fills a batch.
        task: What is differentiated.
        layers: The tracked layers; none where rows are hidden states.
        modules: Which columns of a row belong to which layer, and to which checkpoint where there are several.
        rows_capture: Gives the run's rows, projected gradients or hidden states; of several checkpoints, those of the
            one that is loaded.
        tokenising: Held while the tokeniser is in use: a fast tokeniser may not be entered twice.
        computing: Held while a shard is captured, so that a worker's two task slots take turns.
    """

    def __init__(self, spec: CaptureSpec) -> None:
        self.asked = spec
        self.device = torch.device(_device(spec))
        dtype = resolve_dtype(spec.model, self.device)
        self.spec = spec.resolved(str(dtype).removeprefix("torch."), self.device.type)  # type: ignore[arg-type]
        self.model = load_model(spec.model, self.device, dtype)
        self.device = first_device(self.model, self.device)
        self.tokeniser = load_tokeniser(spec.model)
        self.pad = pad_id(self.model, self.tokeniser)
        self._embeddings: int = self.model.get_input_embeddings().weight.shape[0]
        self.task = task_for(spec.model.kind, spec.task)
        self.layers = tracked_layers(self.model, spec.model.layers) if spec.baseline is None else ()
        self._hooks: Hooks | HiddenStates | None = None
        self._loaded: int | None = None
        self._checked: tuple[str, ...] | None = None
        self._folded: dict[int, Capture] = {}
        self._set_up(0)
        self.tokenising = threading.Lock()
        self.computing = threading.Lock()

    @property
    def dims(self) -> int:
        """The columns of a row: D of each checkpoint."""
        return self.modules[-1].stop if self.modules else 0

    @property
    def checkpoints(self) -> int:
        """How many checkpoints' gradients a row has."""
        return len(self.spec.checkpoints)

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch, decided."""
        assert self.spec.token_budget is not None
        return self.spec.token_budget

    def serves(self, spec: CaptureSpec) -> bool:
        """Whether this model, data and task are what a specification asks for, whatever its projection."""
        return spec.unprojected() in (self.asked.unprojected(), self.spec.unprojected())

    def is_of(self, spec: CaptureSpec) -> bool:
        """Whether it is what a specification asks for, projection and all."""
        return self.serves(spec) and all(
            getattr(spec, part) == getattr(self.spec, part) for part in (*PROJECTING, "identity")
        )

    def project(self, spec: CaptureSpec) -> None:
        """Project rows as another specification of the same model and data says, and read those of its run."""
        if spec.digests and spec.digests != self._checked:
            check_digests(spec)
            self._checked = spec.digests
        # Before there is a run nothing says that the files are still those that were read.
        if spec.identity is None or spec.identity != self.spec.identity:
            self.spec = self.spec.model_copy(update={"identity": spec.identity})
            self.__dict__.pop("rows", None)
        if not self.is_of(spec):
            self.spec = self.spec.model_copy(update={part: getattr(spec, part) for part in PROJECTING})
            self._folded.clear()
            self._set_up(self._number)

    def load(self, checkpoint: int) -> None:
        """Give the model the weights of one of the recipe's checkpoints, for the captures that follow.

        Raises:
            ModelError: It can't be loaded, or is of another architecture.
            OptimiserMismatch: Its optimiser's state isn't the model's.
            DigestMismatch: Its factors, where the projection has them, are missing or damaged.
        """
        path = self.spec.checkpoints[checkpoint].path
        if path is not None and checkpoint != self._loaded:
            self._loaded = None
            load_weights(self.model, self.spec.model, path, resolve_dtype(self.spec.model, self.device))
            self._loaded = checkpoint
        if checkpoint != self._number and self.spec.projects_apart:
            self._set_up(checkpoint)

    def set_hooks(self, hooks: Hooks | HiddenStates) -> None:
        """Set hooks on the model in the place of those that are set."""
        if hooks is not self._hooks:
            self.close()
            self._hooks = hooks.__enter__()

    def close(self) -> None:
        """Remove the hooks; the session can't be used afterwards."""
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None

    def _set_up(self, checkpoint: int) -> None:
        """Make the capture of one checkpoint's rows, with what it divides by and projects with, and set its hooks."""
        spec, scales = self.spec, None
        # What the capture before this one holds may be larger than the model.
        self.close()
        self.__dict__.pop("rows_capture", None)
        state = spec.checkpoints[checkpoint].state
        if state is not None:
            moments = read_second_moments(state, self.model)
            scales = denominators(self.model, self.layers, moments, spec.gradient.epsilon)
        self.rows_capture: Capture | HiddenStates
        if spec.baseline is not None:
            self.rows_capture = HiddenStates(self.model)
        elif checkpoint in self._folded:
            self.rows_capture = self._folded[checkpoint]
        else:
            projection = projection_of(spec, self.layers, checkpoint)
            self.rows_capture = Capture(self.model, self.layers, projection, scales)
            if spec.factors:
                # Its matrices are small beside the factors, which every change of checkpoint would read and fold anew.
                self._folded[checkpoint] = self.rows_capture
        check_drawn(self.rows_capture.record, spec.drawn, checkpoint)
        self.modules = side_by_side(self.rows_capture.modules, self.checkpoints)
        self._number = checkpoint
        self.set_hooks(self.rows_capture)

    @cached_property
    def rows(self) -> Rows:
        """The data set, opened when first asked for: a query needs none.

        Raises:
            DataError: It can't be read, or isn't the one that the run was built from.
        """
        rows = open_rows(self.spec.data, self.spec.identity)
        self.check_classes(rows)
        return rows

    def check_classes(self, rows: Rows) -> None:
        """Refuse a data set that numbers its classes in another order than the model.

        Raises:
            DataError: Both orders are listed.
        """
        check_class_order(rows.classes, self.label_names, rows.place)

    @cached_property
    def label_names(self) -> dict[str, int] | None:
        """A classifier's label names, as its configuration has them."""
        classifies = self.spec.model.kind == "sequence_classification"
        names = getattr(self.model.config, "label2id", None) if classifies else None
        return {str(name): int(label) for name, label in names.items()} if names else None

    @property
    def device_name(self) -> str:
        """The device in words, for people."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @cached_property
    def longest(self) -> int | None:
        """The most tokens the model can be given at once, where it has a limit."""
        return max_positions(self.model)

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

    def contributing(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts that rows are made of: those with scored tokens; of hidden states, those with tokens."""
        if self.spec.baseline is not None:
            return [part for part in parts if len(part.input_ids)]
        return [part for part in parts if part.scored]

    def losses(self, parts: Sequence[Part], names: Sequence[str]) -> Iterator[Piece]:
        """Capture what a training row is made of, at the checkpoint that is loaded: ∇ℓ of every part, and ℓ.

        Of hidden states it is their mean over the part, times the part's share of its row's tokens, so that a row is
        the sum of its parts here too.

        Where the recipe measures log-odds it is minus their gradient, and the values are [n, 2]: ℓ, and the sum of 1−p
        over the scored tokens.
        """
        kind = self.spec.measurement
        if self.spec.baseline is not None:
            positions, lengths = [part.position for part in parts], [len(part.input_ids) for part in parts]
            read = np.bincount(positions, lengths)
            for piece in self.capture(self.task.example_loss, parts, names):
                shares = [len(part.input_ids) / read[part.position] for part in piece.parts]
                yield replace(piece, rows=piece.rows * torch.tensor(shares, dtype=piece.rows.dtype)[:, None])
            return
        if kind == "log_likelihood":
            yield from self.capture(self.task.example_loss, parts, names)
            return

        capture = self.rows_capture

        def compute(batch: Any) -> tuple[Tensor, Tensor]:
            rows, _ = capture(lambda model, batch: row_loss(self.task, model, batch, kind), batch)
            with torch.no_grad():
                losses = self.task.example_loss(self.model, batch)
            weights = row_weight(self.task, self.model, batch, kind)
            assert weights is not None, "log-odds have weights"
            return rows, torch.stack([losses, weights], dim=1)

        for piece in self.run(compute, parts, names, self.rows_capture):
            scored = torch.tensor([part.scored for part in piece.parts])
            values = torch.stack([piece.values[:, 0], piece.values[:, 1] * scored], dim=1)
            yield replace(piece, values=values)

    def capture(
        self,
        measure: Measure,
        parts: Sequence[Part],
        names: Sequence[str],
        hooks: Hooked | None = None,
    ) -> Iterator[Piece]:
        """Capture the gradient of every part's measured value, batch by batch; see `batches.run_batches`.

        Args:
            measure: What is differentiated, one value a part.
            parts: With at least one scored token each.
            names: What to call the example at each position in a message.
            hooks: What is kept of a gradient; the run's projected rows where nothing else is asked for.
        """
        chosen = hooks or self.rows_capture
        return self.run(lambda batch: chosen(measure, batch), parts, names, chosen)

    def run(self, compute: Compute, parts: Sequence[Part], names: Sequence[str], hooks: Hooked) -> Iterator[Piece]:
        """Compute something of every part, batch by batch, under hooks; see `capture`."""
        self.set_hooks(hooks)
        return run_batches(
            compute, parts, names, width=hooks.width, budget=self.token_budget, pad=self.pad, device=self.device
        )


def _device(spec: CaptureSpec) -> str:
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ClusterError(
            "This process was to compute on CUDA, but torch finds no CUDA device. Set cluster.device to cpu or auto."
        )
    return "cuda" if spec.device != "cpu" and torch.cuda.is_available() else "cpu"
