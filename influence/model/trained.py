"""Which parameters of a model were trained, and which share of them is tracked.

Rows that lack most of what was trained look like any others, so a share of the body (see `influence.coverage`) under
90 % is a warning that names what is missing, and under half of it an error unless `model.layers.allow_partial` is set.
What a user leaves out by a glob is their choice: it is named, and doesn't count.
"""

import logging
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from influence.coverage import Coverage, LeftOut
from influence.errors import ModelError
from influence.model.layers import LayerSettings, TrackedLayer
from influence.model.unembedding import unembedding

log = logging.getLogger(__name__)

WARNED = 0.9
REFUSED = 0.5

_trained: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()
"""What a model that was loaded frozen has trained."""


def remember_trained(model: nn.Module) -> None:
    """Remember which parameters require gradients now, before they are frozen."""
    _trained[model] = _requiring(model)


def trained_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the trained parameters.

    They are those that require gradients, now or when the model was loaded. Of a frozen model all floating-point
    parameters count as trained; of a frozen model with PEFT adapters the adapters' own.
    """
    remembered = _trained.get(model)
    if remembered is not None:
        return remembered
    requiring = _requiring(model)
    if requiring:
        return requiring
    floating = frozenset(name for name, parameter in model.named_parameters() if parameter.is_floating_point())
    if not hasattr(model, "peft_config"):
        return floating
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) or "lora_"
    marks = (prefix, ".modules_to_save.", "trainable_tokens_", "prompt_encoder.")
    return frozenset(name for name in floating if any(mark in name for mark in marks))


def coverage_of(
    model: nn.Module, settings: LayerSettings, layers: Sequence[TrackedLayer], reached: Collection[str]
) -> Coverage:
    """Count the trained parameters that are tracked.

    Args:
        model: The model.
        settings: Its globs.
        layers: The tracked layers.
        reached: Names of the parameters that got a gradient; only trained ones among them count.
    """
    tracked = {id(layer.module.weight) for layer in layers}
    tracked |= {id(layer.module.bias) for layer in layers if layer.bias}
    vocabulary = set() if hasattr(model, "peft_config") else _vocabulary(model)
    trained = trained_parameters(model)
    counts = {"trained": 0, "tracked": 0, "body": 0, "body_tracked": 0}
    left_out: dict[tuple[str, bool], list[int]] = {}
    for name, parameter in model.named_parameters():
        if name not in trained or name not in reached:
            continue
        size, in_rows = parameter.numel(), id(parameter) in tracked
        by_choice = not in_rows and (id(parameter) in vocabulary or _excluded(name, settings))
        counts["trained"] += size
        counts["tracked"] += size * in_rows
        counts["body"] += size * (not by_choice)
        counts["body_tracked"] += size * in_rows
        if not in_rows:
            left_out.setdefault((re.sub(r"(?<=\.)\d+(?=\.)", "*", name), by_choice), []).append(size)
    parts = [
        LeftOut(pattern=pattern, parameters=len(sizes), weights=sum(sizes), chosen=by_choice)
        for (pattern, by_choice), sizes in left_out.items()
    ]
    return Coverage(**counts, left_out=tuple(sorted(parts, key=lambda part: -part.weights)))


def check_coverage(coverage: Coverage, settings: LayerSettings) -> None:
    """Warn where much of the body is missing, and refuse where most is.

    Raises:
        ModelError: Less than half of the body is tracked, and `allow_partial` isn't set.
    """
    if coverage.body_share >= WARNED:
        return
    lacking = f"{coverage.summary}. Not tracked: {coverage.missing()}"
    if coverage.body_share < REFUSED and not settings.allow_partial:
        raise ModelError(
            f"Only {lacking}. Scores would leave out most of what was trained. Track more by name "
            "(model.layers.include, for embeddings), or accept it: model.layers.allow_partial: true."
        )
    log.warning("Only %s. Scores leave it out.", lacking)


def _requiring(model: nn.Module) -> frozenset[str]:
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    )


def _vocabulary(model: Any) -> set[int]:
    """Return the embeddings' and the unembedding's parameters, which are tracked only where a glob names them."""
    modules: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    last = unembedding(model)
    if last is not None:
        modules.append(last)
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _excluded(name: str, settings: LayerSettings) -> bool:
    """Whether a parameter's module is outside `include`, or it or a module around it is in `exclude`."""
    path = name.split(".")[:-1]
    modules = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
    if any(fnmatchcase(module, glob) for module in modules for glob in settings.exclude):
        return True
    owner = ".".join(path)
    return "*" not in settings.include and not any(fnmatchcase(owner, glob) for glob in settings.include)


__all__ = ["check_coverage", "coverage_of", "remember_trained", "trained_parameters"]
