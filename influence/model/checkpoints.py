"""Several checkpoints of one model, loaded into it one after another, and its own weights given back at the end."""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from influence.errors import ModelError
from influence.model.load import ModelSettings, load_model

SHOWN = 4
"""How many weights of each kind a message lists."""
CIRCUMSTANCES = (
    *("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
)
"""What a configuration says of how a model was saved; two checkpoints of one training may differ in it."""
ADAPTER_KEYS = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "alpha_pattern",
    "rank_pattern",
    "target_modules",
)


class Checkpoints:
    """State dicts of one architecture; a context manager that leaves the model with the weights it had.

    Going through it loads each in turn and gives its number. Without state dicts the model itself is the only one, and
    nothing is loaded or copied.
    """

    def __init__(self, model: nn.Module, states: Sequence[Mapping[str, Tensor]] | None) -> None:
        """Check every state dict before any is loaded.

        Raises:
            ModelError: There are none, or one has other weights than the model; both sides are listed.
        """
        self._model, self._states = model, states
        self._own: dict[str, Tensor] | None = None
        if states is not None:
            if not states:
                raise ModelError("There are no checkpoints. Give at least one state dict, or leave checkpoints out.")
            for number, state in enumerate(states):
                check_same_weights(model, state, f"Checkpoint {number}")

    def __len__(self) -> int:
        return 1 if self._states is None else len(self._states)

    def __enter__(self) -> Self:
        """Keep the model's own weights."""
        if self._states is not None:
            self._own = {name: weight.clone() for name, weight in self._model.state_dict().items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the model its own weights back."""
        if self._own is not None:
            self._model.load_state_dict(self._own)
            self._own = None

    def __iter__(self) -> Iterator[int]:
        """Load each checkpoint and yield its number."""
        for number in range(len(self)):
            if self._states is not None:
                assert self._own is not None, "checkpoints are loaded inside the context manager"
                self._model.load_state_dict(dict(self._states[number]))
            yield number


def load_weights(model: Any, settings: ModelSettings, path: str, dtype: torch.dtype) -> None:
    """Give a loaded model the weights of another folder, read with the same care; memory holds both for that moment.

    Args:
        model: Keeps its own weights where these can't be used.
        settings: What the model was loaded with.
        path: A model's folder, or a name on the hub.
        dtype: The model's.

    Raises:
        ModelError: The folder can't be loaded, or is of another architecture; both sides are listed.
    """
    plain = {"path": path, "gradient_checkpointing": False, "device_map": None}
    other = load_model(settings.model_copy(update=plain), "cpu", dtype)
    label = f"The checkpoint {path}"
    state = other.state_dict()
    check_same_weights(model, state, label)
    here, there = _described(model), _described(other)
    lines = [
        f"{key} is {there.get(key)!r}, the model's is {here.get(key)!r}"
        for key in {**here, **there}
        if here.get(key) != there.get(key)
    ]
    if lines:
        raise ModelError(
            f"{label} isn't of the {type(model).__name__} in {settings.path}: {_listed(lines)}. Checkpoints of one "
            "recipe are those of one architecture."
        )
    model.load_state_dict(state)


def _described(model: Any) -> dict[str, Any]:
    """Return what a model computes besides its weights: its configuration, and its adapters', as far as they matter."""
    description = {key: value for key, value in model.config.to_dict().items() if key not in CIRCUMSTANCES}
    for name, adapter in getattr(model, "peft_config", {}).items():
        for key in ADAPTER_KEYS:
            value = getattr(adapter, key, None)
            description[f"{name}.{key}"] = sorted(value) if isinstance(value, set) else value
    return description


def check_same_weights(model: nn.Module, state: Mapping[str, Tensor], label: str) -> None:
    """Refuse a state dict that isn't of this model: every name and every shape must be the same.

    Args:
        model: What it is loaded into.
        state: Tensors by name.
        label: What the message calls it.

    Raises:
        ModelError: It lists what is missing, what is left over, and the shapes that differ.
    """
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    actual = {name: tuple(weight.shape) for name, weight in state.items()}
    if expected == actual:
        return
    lines = []
    missing, left_over = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    if missing:
        lines.append(f"it lacks {_listed(missing)}")
    if left_over:
        lines.append(f"it has {_listed(left_over)}, for which the model has no place")
    other = [
        f"{name} is {actual[name]}, the model's is {expected[name]}"
        for name in expected
        if name in actual and actual[name] != expected[name]
    ]
    if other:
        lines.append(_listed(other))
    raise ModelError(
        f"{label} isn't of this {type(model).__name__}: {'; '.join(lines)}. Checkpoints of one recipe are those of one "
        "architecture, whole state dicts."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
