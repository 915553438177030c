"""The methods that `quality.py` compares, each a line of `METHODS`: each scores every row for every query."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from truth import PAD_ID

from influence.axes import ModuleColumns
from influence.baselines import bm25, repsim
from influence.curvature.covariance import CovarianceFit
from influence.curvature.kfac import decompose
from influence.curvature.whitening import fold_for
from influence.data.batch import Batch, collate, cut_batches
from influence.data.tokenise import Part
from influence.gradients.capture import Capture, lay_out
from influence.gradients.projection import Projection
from influence.model.layers import tracked_layers
from influence.query.pairwise import pairwise
from influence.recipes import Recipe, recipe
from influence.store.codec import CodecSettings
from influence.store.codecs import bytes_per_row, codec_for
from influence.task import CausalLM, fisher_loss, measurement
from influence.vectors.unit_norm import unit_norm


@dataclass(frozen=True)
class Examples:
    """Training rows or queries, as tokens and as the text that these spell."""

    parts: Sequence[Part]
    texts: Sequence[str]

    @cached_property
    def batches(self) -> list[Batch]:
        """Batches of similar length, longest first; `positions` puts what they give back in order."""
        groups = cut_batches([len(part.input_ids) for part in self.parts], 2048)
        return [collate([self.parts[index] for index in group], PAD_ID) for group in groups]

    @property
    def positions(self) -> list[int]:
        """Which example each is, in the order of the batches."""
        return [position for batch in self.batches for position in batch.positions]

    def first(self, count: int) -> "Examples":
        """Return the first few of them."""
        return Examples(self.parts[:count], self.texts[:count])


@dataclass(frozen=True)
class Subject:
    """What is examined: the model of all rows, and where it was saved after each epoch (see `truth.py`)."""

    model: LlamaForCausalLM
    task: CausalLM
    checkpoints: tuple[Path, ...]

    @cached_property
    def modules(self) -> tuple[ModuleColumns, ...]:
        """The tracked layers, whole."""
        return lay_out(
            tracked_layers(self.model), Projection(recipe("graddot", projection={"kind": "none"}).projection)
        )[0]


Scores = Callable[[Subject, Examples, Examples], np.ndarray]


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        scores: `scores(subject, rows, queries)`, [queries, rows], in their order; positive promotes.
        floats: Float32 numbers (four bytes) that are stored a row; None for a method that keeps the text.
    """

    scores: Scores
    floats: Callable[[Subject], float] | None = None


def _chosen(name: str, width: int | None, parts: dict[str, Any]) -> Recipe:
    projection = {"kind": "none"} if width is None else {"p": width, "q": width}
    return recipe(name, projection={**projection, **parts.pop("projection", {})}, **parts)


def _widths(subject: Subject, chosen: Recipe) -> tuple[ModuleColumns, ...]:
    """Return the columns of a row of this recipe, whatever its matrices are made of."""
    plain = chosen.projection.model_copy(update={"rows": "random"})
    return lay_out(tracked_layers(subject.model), Projection(plain))[0]


def _ordered(found: np.ndarray, rows: Examples, queries: Examples) -> np.ndarray:
    """Put scores of batches sorted by length into the order of the examples."""
    ordered = np.empty(found.shape)
    ordered[np.ix_(queries.positions, rows.positions)] = found
    return ordered


def preset(name: str, width: int | None = None, **parts: Any) -> Method:
    """Return a preset of `influence.recipe` as a method.

    Args:
        name: The preset's.
        width: P and Q; None leaves the gradients whole.
        **parts: Other parts to change.
    """
    chosen = _chosen(name, width, parts)

    def scores(subject: Subject, rows: Examples, queries: Examples) -> np.ndarray:
        found = pairwise(subject.model, subject.task, rows.batches, queries.batches, recipe=chosen)
        return _ordered(found.numpy(), rows, queries)

    return Method(scores, lambda subject: _widths(subject, chosen)[-1].stop)


def coded(name: str, width: int, codec: CodecSettings, **parts: Any) -> Method:
    """Return a preset without curvature of its own whose rows are kept by a codec; queries stay in float32."""
    chosen = _chosen(name, width, parts)

    def scores(subject: Subject, rows: Examples, queries: Examples) -> np.ndarray:
        layers, fold = tracked_layers(subject.model), None
        if chosen.projection.folds:
            with CovarianceFit(subject.model, layers, chosen.factors) as fit:
                for number, batch in enumerate(rows.batches):
                    seed = chosen.factors.label_seed(number)
                    fit.add(
                        lambda m, b, seed=seed: fisher_loss(subject.task, chosen.factors.labels, m, b, seed),
                        *(batch, batch.attention_mask),
                    )
            fold = fold_for(chosen.projection, decompose(fit.sums), fit.sums.examples)
        with Capture(subject.model, layers, Projection(chosen.projection, fold)) as capture:
            kept = torch.cat([capture(subject.task.example_loss, batch)[0] for batch in rows.batches])
            asked = [
                capture(lambda m, b: -measurement(subject.task, m, b), batch)[0].neg() for batch in queries.batches
            ]
        store = codec_for(codec, capture.modules)
        directions, norms = unit_norm(kept)
        encoded = store.encode(directions.numpy())
        found = store.scores(encoded, -torch.cat(asked).numpy())
        if chosen.comparison == "dot":
            found = found * norms.numpy()
        return _ordered(found, rows, queries)

    return Method(scores, lambda subject: bytes_per_row(codec, _widths(subject, chosen)) / 4)


def trak(dims: int) -> Method:
    """Return TRAK of the last checkpoint; damped, as 1,000 rows are fewer than its columns."""
    chosen = recipe("trak", projection={"dims": dims, "block": dims}, damping=0.1)

    def scores(subject: Subject, rows: Examples, queries: Examples) -> np.ndarray:
        found = pairwise(subject.model, subject.task, rows.batches, queries.batches, recipe=chosen)
        return _ordered(found.numpy(), rows, queries)

    return Method(scores, lambda subject: dims)


def over_checkpoints(name: str, width: int, count: int, *, moments: bool = False, **parts: Any) -> Method:
    """Return a preset over the last few epochs' models, with the optimiser's second moments where it wants them."""
    chosen = _chosen(name, width, parts)

    def scores(subject: Subject, rows: Examples, queries: Examples) -> np.ndarray:
        folders = subject.checkpoints[-count:]
        given: dict[str, Any] = {
            "checkpoints": [LlamaForCausalLM.from_pretrained(folder).state_dict() for folder in folders]
        }
        if moments:
            given["second_moments"] = [load_file(folder / "adam.safetensors") for folder in folders]
        found = pairwise(subject.model, subject.task, rows.batches, queries.batches, recipe=chosen, **given)
        return _ordered(found.numpy(), rows, queries)

    return Method(scores, lambda subject: count * _widths(subject, chosen)[-1].stop)


def lexical(_: Subject, rows: Examples, queries: Examples) -> np.ndarray:
    """Score by BM25 over the texts."""
    prepared = bm25.fit(rows.texts)
    return np.stack([prepared.scores(text) for text in queries.texts])


def similar(subject: Subject, rows: Examples, queries: Examples) -> np.ndarray:
    """Score by the cosine of mean last hidden states."""
    prepared = repsim.fit(repsim.representations(subject.model, rows.batches))
    found = prepared.scores(repsim.representations(subject.model, queries.batches))
    return _ordered(np.asarray(found), rows, queries)


WIDTHS = (8, 16, 32, 64)
CODES = {
    **{name: CodecSettings(codec=name) for name in ("int8", "int4", "bits")},
    "rank 1": CodecSettings(codec="factors", rank=1),
    "rank 2": CodecSettings(codec="factors", rank=2),
}

METHODS: dict[str, Method] = {
    "bm25": Method(lexical),
    "repsim": Method(similar, lambda subject: subject.model.config.hidden_size),
    "ekfac": preset("ekfac", damping=0.01),
    **{f"ekfac λ {damping:g}": preset("ekfac", damping=damping) for damping in (0.001, 0.1, 1.0)},
    **{f"kfac λ {damping:g}": preset("kfac", damping=damping) for damping in (0.01, 0.1)},
    "graddot": preset("graddot"),
    "gradcos": preset("gradcos"),
    **{f"{name} {width}": preset(name, width) for name in ("graddot", "gradcos") for width in WIDTHS},
    **{f"{name} {width}": preset(name, width) for name in ("logra", "trackstar") for width in WIDTHS[:3]},
    **{f"whitened {width}": preset("whitened", width) for width in WIDTHS},
    **{f"whitened {width} cosine": preset("whitened", width, comparison="cosine") for width in WIDTHS},
    **{f"whitened 32 λ {damping:g}": preset("whitened", 32, damping=damping) for damping in (0.01, 0.03, 0.3, 1.0)},
    "whitened 16 + fisher": preset("whitened", 16, curvature={"kind": "fisher"}),
    "eigenvectors 16": preset("graddot", 16, projection={"rows": "eigenvectors"}),
    **{f"whitened 64 {name}": coded("whitened", 64, codec) for name, codec in CODES.items()},
    **{
        f"whitened 64 cosine {name}": coded("whitened", 64, CODES[name], comparison="cosine")
        for name in ("int4", "bits")
    },
    **{f"whitened 32 {name}": coded("whitened", 32, CODES[name]) for name in ("int4", "bits")},
    **{
        f"whitened 64 bits λ {damping:g}": coded("whitened", 64, CODES["bits"], damping=damping)
        for damping in (0.01, 0.03, 0.3)
    },
    "graddot 64 bits": coded("graddot", 64, CODES["bits"]),
    "trak 1024": trak(1024),
    "tracin 16 × 3": over_checkpoints("tracin", 16, 3),
    "less 16": over_checkpoints("less", 16, 1, moments=True),
    "trackstar 16 adam": over_checkpoints("trackstar", 16, 1, moments=True, gradient={"kind": "adam"}),
    "whitened 16 × 4": over_checkpoints("whitened", 16, 4),
}
