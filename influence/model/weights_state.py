"""What facts about a model depend on: which weights and which configuration it has now."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from influence.model.evaluation import untrained

T = TypeVar("T")


def weights_state(model: nn.Module) -> object:
    """Return a value that changes with every in-place change of a weight, every load and every new configuration."""
    try:
        versions = hash(tuple((id(weight), weight._version) for weight in model.parameters()))
    except RuntimeError:  # Weights made in inference mode count no versions; nothing can be differentiated there.
        versions = 0
    config = getattr(model, "config", None)
    return versions, str(getattr(config, "__dict__", config))


class PerState(Generic[T]):
    """A fact about models, computed anew where the weights or the configuration changed since."""

    def __init__(self, compute: Callable[..., T]) -> None:
        self._compute = compute
        self._known: WeakKeyDictionary[nn.Module, tuple[object, T]] = WeakKeyDictionary()

    def __call__(self, model: Any, *args: Any) -> T:
        """Return the fact; `compute(model, *args)` in evaluation mode where it isn't known of this state."""
        state = weights_state(model)
        cached = self._known.get(model)
        if cached is None or cached[0] != state:
            with untrained([module for module in model.modules() if module.training]):
                cached = state, self._compute(model, *args)
            self._known[model] = cached
        return cached[1]
