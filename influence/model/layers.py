"""Which layers of a model are tracked, in an order that never changes.

A tracked layer contributes one block of columns to every row. By default these are all linear layers and
two-dimensional convolutions except the unembedding; embeddings and the unembedding are as wide as the vocabulary and
are tracked only where a glob names them. Of a model with PEFT adapters the adapters' own layers are tracked, and of one
that is partly frozen those that require gradients, because only they were trained.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter
from transformers.pytorch_utils import Conv1D

from influence.errors import ModelError
from influence.model.unembedding import unembedding

log = logging.getLogger(__name__)

LayerKind = Literal["linear", "conv1d", "conv2d", "embedding"]


class LayerSettings(BaseModel):
    """Globs over the dotted module names, such as `model.layers.*.mlp.*`; upper and lower case differ.

    `"*"` alone stands for the default choice (see the module's docstring); any other glob may name any layer, the
    unembedding, the embeddings and the frozen layers under an adapter included. `exclude` wins over `include`, and may
    name modules that can't be tracked, so that they don't count as missing. With `bias` a layer's bias is tracked as
    one more input that is always 1. With `allow_partial` less than half of what was trained may be tracked (see
    `influence.model.trained`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    bias: bool = False
    allow_partial: bool = False


DEFAULT = LayerSettings()
PROMPTS = {
    "PROMPT_TUNING": "prompt tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "CPT": "context-aware prompt tuning",
    "CARTRIDGE": "a cartridge",
}
"""Adapters that learn a prompt or a cache and adapt no layer, by PEFT's name."""


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

    A module that is used under two names is listed once, under its first.

    Raises:
        ModelError: No layer matches, a glob of `include` names no layer, a layer was chosen whose gradient can't be
            split, hooks on the model would see nothing, or it has adapters without layers.
    """
    _check_modules(model)
    for kind in adapter_kinds(model):
        if kind in PROMPTS:
            raise ModelError(f"{type(model).__name__} has {no_layers(kind)}")
    modules = dict(model.named_modules())
    kinds: dict[str, LayerKind] = {}
    for name, module in modules.items():
        kind = layer_kind(module)
        if kind is not None:
            kinds[name] = kind
    on_request = _on_request(model, modules, kinds)
    _check_globs(model, settings, kinds, modules)
    names = [
        name
        for name in kinds
        if (("*" in settings.include and name not in on_request) or _matches(name, set(settings.include) - {"*"}))
        and not _matches(name, settings.exclude)
    ]
    if not names and adapter_kinds(model) and "*" in settings.include:
        raise ModelError(
            f"None of the weights that these adapters ({', '.join(adapter_kinds(model))}) train is a layer's that can "
            "be tracked (linear, Conv1D, Conv2d). LoRA adapters can; or name the frozen layers under the adapters: "
            "model.layers.include, with model.layers.allow_partial."
        )
    if not names:
        frozen = _frozen(model, modules, kinds)
        why = f"Of its layers {len(frozen)} are frozen and tracked only where a glob names them. " if frozen else ""
        raise ModelError(
            f"No layer of {type(model).__name__} matches include {list(settings.include)} without exclude "
            f"{list(settings.exclude)}. {why}{_examples(kinds)}"
        )
    return tuple(_describe(name, modules[name], kinds[name], settings.bias) for name in names)


def adapter_kinds(model: nn.Module) -> list[str]:
    """Return PEFT's names of the kinds of adapters that a model has; none where it has none."""
    configs = getattr(model, "peft_config", None) or {}
    return list(
        dict.fromkeys(getattr(adapter.peft_type, "value", str(adapter.peft_type)) for adapter in configs.values())
    )


def no_layers(kind: str) -> str:
    """Return what to say of adapters that learn a prompt."""
    return (
        f"{PROMPTS[kind]} ({kind}): what was trained are vectors beside the text, and no layer that could be tracked. "
        "Train LoRA adapters or the model itself, or compare texts alone (recipe: bm25)."
    )


def layer_kind(module: nn.Module) -> LayerKind | None:
    """Return how a module can be tracked, or None for one that can't be."""
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        # A weight that is computed from other parameters (weight norm, a parametrization) was not itself trained.
        return None
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
        if module.scale_grad_by_freq:
            raise ModelError(
                f"{name} is an embedding with scale_grad_by_freq: a token's gradient depends on how often the batch "
                f"has it, so an example has none of its own. Leave it out: add {name!r} to model.layers.exclude."
            )
        inputs, outputs = module.num_embeddings, module.embedding_dim
    elif isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
    else:
        assert isinstance(module, nn.Linear)
        inputs, outputs = module.in_features, module.out_features
    return TrackedLayer(name=name, module=module, kind=kind, inputs=inputs + bias, outputs=outputs, bias=bias)


def _on_request(model: nn.Module, modules: dict[str, nn.Module], kinds: dict[str, LayerKind]) -> set[str]:
    """The names that `"*"` alone doesn't choose: embeddings, the unembedding, and frozen layers beside trained ones."""
    last = unembedding(model)
    # PEFT's wrappers say in `adapter_layer_names` which of their children are the trained ones.
    adapters = [
        f"{name}.{child}."
        for name, module in modules.items()
        for child in getattr(module, "adapter_layer_names", ())
        if child in module._modules
    ]
    frozen = _frozen(model, modules, kinds)
    return {
        name
        for name, kind in kinds.items()
        if kind == "embedding"
        or modules[name] is last
        or name in frozen
        or (adapters and not any(name.startswith(adapter) for adapter in adapters))
    }


def _frozen(model: nn.Module, modules: dict[str, nn.Module], kinds: dict[str, LayerKind]) -> set[str]:
    """The layers whose weight does not require a gradient, of a model in which something does.

    A model of which nothing does was frozen for gradients to be taken, as `load_model` does: all of it counts.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return set()
    return {name for name in kinds if not modules[name].weight.requires_grad}


def _check_modules(model: nn.Module) -> None:
    """Refuse modules on which hooks or weights mean something else than they say.

    Raises:
        ModelError: One is compiled, scripted, lazy, or normalises by its batch in evaluation mode; it is named.
    """
    for name, module in model.named_modules():
        label = f"{name or 'The model'} ({type(module).__name__})"
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(
                f"{label} is compiled (torch.compile), and hooks on compiled layers may see nothing. Give the module "
                "as it was before: model._orig_mod of what torch.compile returned, or one that .compile() was not "
                "called on."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{label} is TorchScript, whose layers can't be hooked. Give the Python module it is of.")
        if any(isinstance(weight, UninitializedParameter) for weight in module._parameters.values()):
            raise ModelError(f"{label} is lazy and has no weights yet. Run the model once on a batch.")
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"{label} has no running statistics (track_running_stats=False), so in evaluation mode, too, it "
                "normalises an example by the others of its batch, and an example has no gradient of its own. Train "
                "with running statistics, or with a norm that looks at one example (LayerNorm, GroupNorm)."
            )


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
    names = ", ".join(list(kinds)[:8])
    return (
        f"A glob must match a layer's whole name; its {len(kinds)} layers are {names}{', …' if len(kinds) > 8 else ''}."
    )


def globs_for(names: Sequence[str]) -> list[str]:
    """Return few globs that match these module names: numbers between dots become `*`."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name) for name in names))


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
