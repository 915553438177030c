"""Per-example gradients as Adam would scale them: G / (√v̂ + ε), element by element, before they are projected.

v̂ is the optimiser's own second moment, of a checkpoint or the end of training (`optimiser` reads it). The division
mixes what the two factors of G = Σ_s g_s a_sᵀ keep apart, so they can't be projected first: G is formed for a few
examples at a time, divided, projected and dropped. It is linear in G, so a layer used twice still adds up. An
embedding's a is one-hot: there each g_s is divided by the column of its token, and no G is formed.

It stands for one Adam step on the row, without what all rows share (the momentum) and without the row's own part in v̂.
Evidence of the field: it lowered TrackStar's linear datamodeling score on GPT-2 at every width tried, so it is done
only where a recipe asks for it.

Sources: Xia et al. 2024, "LESS: Selecting influential data for targeted instruction tuning", section 3.1 (rows only,
with momentum); Chang et al. 2024, "Scalable influence and fact tracing for large language model pretraining"
(TrackStar), section 3 (both sides, without).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from influence.axes import NQP, NSO
from influence.errors import OptimiserMismatch
from influence.gradients.hooks import layer_inputs
from influence.gradients.linear import project_output_grads, project_tokens, sum_over_positions
from influence.gradients.optimiser import PREFIX, listed
from influence.model.layers import TrackedLayer

CHUNK_BYTES = 32 * 2**20
"""Whole gradients of a layer that are formed at once."""

log = logging.getLogger(__name__)


class GradientSettings(BaseModel):
    """The gradient part of a recipe; `raw` or `adam` alone is short for the kind.

    Attributes:
        kind: `raw`, the loss's own gradient; `adam`, divided by the root of the optimiser's second moment.
        state: Where the second moments are: a training's checkpoint folder, its `optimizer.pt`, or safetensors.
        epsilon: ε, added to the root; Adam's own unless set.
        sides: What is divided: `both` queries and rows, or the `rows` alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["raw", "adam"] = "raw"
    state: Annotated[str, Field(min_length=1)] | None = None
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8
    sides: Literal["both", "rows"] = "both"

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _state_is_read(self) -> "GradientSettings":
        if self.kind == "raw" and self.state is not None:
            raise ValueError("raw gradients read no optimiser's state: set gradient kind adam, or leave state out")
        return self

    @property
    def summary(self) -> str:
        """The gradients in words: `Adam-scaled gradients (rows only, ε 1e-08)`."""
        if self.kind == "raw":
            return "raw gradients"
        return f"Adam-scaled gradients ({'rows only' if self.sides == 'rows' else 'both sides'}, ε {self.epsilon:g})"


class Division:
    """Divides one layer's per-example gradients and projects them; the state is prepared, batches only read it.

    Attributes:
        denominator: √v̂ + ε, [O, I], as the layer's gradient lies.
    """

    def __init__(self, layer: TrackedLayer, denominator: Tensor) -> None:
        self.denominator = denominator
        self._layer = layer

    def keep(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return what `product` needs of a layer's input: all of it, [N, S, I]; an embedding's tokens, [N, S]."""
        if self._layer.kind == "embedding":
            return inputs.to(output.device).reshape(inputs.shape[0], -1)
        return layer_inputs(self._layer, inputs, output)

    def product(
        self, grads: NSO, activations: Tensor, left: Tensor | None, right: Tensor | None, dtype: torch.dtype
    ) -> NQP:
        """Return R_o (G / (√v̂ + ε)) R_iᵀ of every example, [N, Q, P] in `dtype`.

        Args:
            grads: Gradient of the summed loss with respect to the layer's output, [N, S, O].
            activations: What `keep` returned.
            left: R_o, [Q, O] in `dtype`; None for the identity.
            right: R_i, [P, I], likewise.
            dtype: What is computed in: float32, or float64 for a float64 model.
        """
        denominator = self._like(grads, dtype)
        if self._layer.kind == "embedding":
            divided = grads.to(dtype) / torch.nn.functional.embedding(activations, denominator.T)
            padding = getattr(self._layer.module, "padding_idx", None)
            tokens = project_tokens(activations, right, self._layer.inputs, dtype, padding)
            return sum_over_positions(project_output_grads(divided, left), tokens, dtype)
        step = max(1, CHUNK_BYTES // (denominator.numel() * denominator.element_size()))
        products = []
        for first in range(0, len(grads), step):
            part = slice(first, first + step)
            gradients = sum_over_positions(grads[part], activations[part], dtype).div_(denominator)
            if left is not None:
                gradients = left @ gradients
            products.append(gradients if right is None else gradients @ right.T)
        return torch.cat(products)

    def _like(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """The denominator in `dtype` on the device of `like`, moved once."""
        if self.denominator.dtype != dtype or self.denominator.device != like.device:
            self.denominator = self.denominator.to(like.device, dtype)
        return self.denominator


def denominators(
    model: nn.Module, layers: Sequence[TrackedLayer], moments: Mapping[str, Tensor], epsilon: float
) -> dict[str, Tensor]:
    """Return √v̂ + ε of every tracked layer, by the layer's name, [O, I] with the bias as a last column where tracked.

    Args:
        model: The model that the layers are of.
        layers: The tracked layers.
        moments: v̂ by parameter name, as the parameter lies; parameters of no tracked layer are not looked at.
        epsilon: ε.

    Raises:
        OptimiserMismatch: A tracked layer's parameter has no second moments, or has them in another shape, negative,
            not finite, or zero throughout; it is named.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    result = {}
    for layer in layers:
        parameters = [("weight", layer.module.weight)] + ([("bias", layer.module.bias)] if layer.bias else [])
        columns = []
        for kind, parameter in parameters:
            assert isinstance(parameter, Tensor), f"{layer.name} is tracked and has no {kind}"
            # A tied weight has several names; the optimiser knows it under one of them.
            names_of = names[id(parameter)]
            columns.append(_as_gradient(layer, kind, _checked(names_of, parameter, moments)))
        result[layer.name] = torch.cat(columns, dim=1).sqrt().add_(epsilon)
    return result


def _checked(names_of: Sequence[str], parameter: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
    name = next((name for name in names_of if name in moments), None)
    if name is None:
        shapes = {name: tuple(moment.shape) for name, moment in moments.items()}
        raise OptimiserMismatch(
            f"The optimiser's state has no second moments of {names_of[0]} {tuple(parameter.shape)}, which is tracked; "
            f"it has {listed(shapes)}. Leave the layer out (model.layers.exclude) if it wasn't trained, or name the "
            f"state of the training that changed it. A safetensors file calls them {PREFIX}{names_of[0]}."
        )
    moment = moments[name]
    if moment.shape != parameter.shape:
        raise OptimiserMismatch(
            f"The second moments of {name} are {tuple(moment.shape)}, and the parameter is {tuple(parameter.shape)}: "
            "they are another model's."
        )
    if not bool(torch.isfinite(moment).all()) or bool((moment < 0).any()):
        bad = int((~torch.isfinite(moment) | (moment < 0)).sum())
        raise OptimiserMismatch(
            f"{bad:,} of the {moment.numel():,} second moments of {name} are negative or not finite, and a mean of "
            "squares is neither. The training diverged or the file is damaged: use another checkpoint."
        )
    zeros = int((moment == 0).sum())
    if zeros == moment.numel():
        raise OptimiserMismatch(
            f"The second moments of {name} are all zero: it was never trained, and dividing by ε alone would let it "
            "drown every other layer. Leave the layer out (model.layers.exclude), or name another checkpoint."
        )
    if zeros:
        log.warning(
            "%s: %.2g%% of the second moments are zero (tokens or units that training never reached); gradients there "
            "are divided by ε alone.",
            *(name, 100 * zeros / moment.numel()),
        )
    return moment


def _as_gradient(layer: TrackedLayer, kind: str, moment: Tensor) -> Tensor:
    """Lay a parameter's second moments out as its gradient lies in G: [O, I], or [O, 1] of a bias."""
    if kind == "bias":
        return moment.reshape(-1, 1)
    if layer.kind in ("conv1d", "embedding"):
        moment = moment.T
    return moment.flatten(1)


__all__ = ["Division", "GradientSettings", "denominators"]
