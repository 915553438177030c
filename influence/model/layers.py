"""Which layers of a model are tracked, in an order that never changes.

A tracked layer contributes one block of columns to every row. By default these are all linear layers and
two-dimensional convolutions except the unembedding; embeddings and the unembedding are as wide as the vocabulary and
are tracked only where a glob names them. Of a model with PEFT adapters the adapters' own layers are tracked, because
only they were trained.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from influence.errors import ModelError
from influence.model.unembedding import unembedding

log = logging.getLogger(__name__)

LayerKind = Literal["linear", "conv1d", "conv2d", "embedding"]


class LayerSettings(BaseModel):
    """Globs over the dotted module names, such as `model.layers.*.mlp.*`; upper and lower case differ.

    `"*"` alone stands for the default choice (see the module's docstring); any other glob may name any layer, the
    unembedding, the embeddings and the frozen layers under an adapter included. `exclude` wins over `include`. With
    `bias` a layer's bias is tracked as one more input that is always 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    bias: bool = False


DEFAULT = LayerSettings()


@dataclass(frozen=True)
class TrackedLayer:
    """One layer whose weight gradient, [O, I], becomes a block of every row.

    Attributes:
        name: The dotted module name.
        module: The module itself, for hooks.
        kind: How its forward pass reads its input.
        inputs: I: features, patch size of a convolution (channels · height · width) or vocabulary of an embedding; one
            more where the bias is tracked.
        outputs: O: features, or channels of a convolution.
        bias: Whether the bias is tracked; false for a layer that has none.
    """

    name: str
    module: nn.Module
    kind: LayerKind
    inputs: int
    outputs: int
    bias: bool


def tracked_layers(model: nn.Module, settings: LayerSettings = DEFAULT) -> tuple[TrackedLayer, ...]:
    """Choose the tracked layers of a model, in the order of `model.named_modules()`.

    A module that is used under two names is listed once, under its first. A tracked weight that another module shares
    (a tied unembedding) is logged as a warning.

    Raises:
        ModelError: No layer matches, a glob of `include` names no layer, or a grouped convolution was chosen.
    """
    modules = dict(model.named_modules())
    kinds: dict[str, LayerKind] = {}
    for name, module in modules.items():
        kind = layer_kind(module)
        if kind is not None:
            kinds[name] = kind
    on_request = _on_request(model, modules, kinds)
    _check_globs(model, settings, kinds, modules)
    chosen = [
        name
        for name in kinds
        if (("*" in settings.include and name not in on_request) or _matches(name, set(settings.include) - {"*"}))
        and not _matches(name, settings.exclude)
    ]
    if not chosen:
        raise ModelError(
            f"No layer of {type(model).__name__} matches include {list(settings.include)} without exclude "
            f"{list(settings.exclude)}. {_examples(kinds)}"
        )
    layers = tuple(_describe(name, modules[name], kinds[name], settings.bias) for name in chosen)
    _warn_of_ties(layers, modules)
    return layers


def layer_kind(module: nn.Module) -> LayerKind | None:
    """Return how a module can be tracked, or None for one that can't be."""
    if isinstance(module, NonDynamicallyQuantizableLinear):
        # torch.nn.MultiheadAttention reads this layer's weight and never calls it, so a hook on it would see nothing.
        return None
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, nn.Conv2d):
        return "conv2d"
    return "embedding" if isinstance(module, nn.Embedding) else None


def _describe(name: str, module: nn.Module, kind: LayerKind, with_bias: bool) -> TrackedLayer:
    bias = with_bias and getattr(module, "bias", None) is not None
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            raise ModelError(
                f"{name} is a convolution in {module.groups} groups, and each group has a gradient of its own, which "
                f"isn't supported. Leave it out: add {name!r} to model.layers.exclude."
            )
        inputs, outputs = module.in_channels * prod(module.kernel_size), module.out_channels
    elif isinstance(module, nn.Embedding):
        inputs, outputs = module.num_embeddings, module.embedding_dim
    elif isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
    else:
        assert isinstance(module, nn.Linear)
        inputs, outputs = module.in_features, module.out_features
    return TrackedLayer(name=name, module=module, kind=kind, inputs=inputs + bias, outputs=outputs, bias=bias)


def _on_request(model: nn.Module, modules: dict[str, nn.Module], kinds: dict[str, LayerKind]) -> set[str]:
    """The names that `"*"` alone doesn't choose: embeddings, the unembedding, and whatever adapters leave frozen."""
    last = unembedding(model)
    # PEFT's wrappers say in `adapter_layer_names` which of their children are the trained ones.
    adapters = [
        f"{name}.{child}."
        for name, module in modules.items()
        for child in getattr(module, "adapter_layer_names", ())
        if child in module._modules
    ]
    return {
        name
        for name, kind in kinds.items()
        if kind == "embedding"
        or modules[name] is last
        or (adapters and not any(name.startswith(adapter) for adapter in adapters))
    }


def _check_globs(
    model: nn.Module, settings: LayerSettings, kinds: dict[str, LayerKind], modules: dict[str, nn.Module]
) -> None:
    for glob in settings.include:
        if glob != "*" and not any(fnmatchcase(name, glob) for name in kinds):
            container = f" It is a module that holds layers: did you mean {glob + '.*'!r}?" if glob in modules else ""
            raise ModelError(
                f"model.layers.include has {glob!r}, which matches no layer of {type(model).__name__}.{container} "
                f"{_examples(kinds)}"
            )
    for glob in settings.exclude:
        if not any(fnmatchcase(name, glob) for name in modules):
            log.warning("model.layers.exclude has %r, which matches no module of %s.", glob, type(model).__name__)


def _examples(kinds: dict[str, LayerKind]) -> str:
    if not kinds:
        return "It has no nn.Linear, Conv1D, nn.Conv2d or nn.Embedding at all."
    shown = ", ".join(list(kinds)[:8])
    return (
        f"A glob must match a layer's whole name; its {len(kinds)} layers are {shown}{', …' if len(kinds) > 8 else ''}."
    )


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _warn_of_ties(layers: tuple[TrackedLayer, ...], modules: dict[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for layer in layers:
        weight = getattr(layer.module, "weight", None)
        for other in owners.get(id(weight), []):
            if other != layer.name:
                log.warning(
                    "%s shares its weight with %s; its columns hold only the gradient that reaches it by way of %s.",
                    *(layer.name, other, layer.name),
                )
