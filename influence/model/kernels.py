"""Code that transformers would fetch from the model hub and run: kernels that a configuration names.

A model folder's `config.json` comes from whoever made the model. It may name an attention or an expert kernel as
`org/name`, or a library that isn't installed, for which transformers takes a kernel of the hub. Both are refused unless
`model.trust_remote_code` is set, in the run file as in the folder.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from influence.errors import ModelError
from influence.model.folder import CONFIG, read_json

CHOICES = ("eager", "sdpa", "flash_attention_2")
LIBRARIES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""What implements an attention without the hub."""


def check_kernels(folder: Path, attention: str | None) -> None:
    """Refuse kernels of the hub.

    Args:
        folder: A model's.
        attention: `model.attention` of the run file.

    Raises:
        ModelError: The run file or the folder's configuration names one, or what would be taken from there.
    """
    if attention and _from_hub(attention):
        raise ModelError(
            f"model.attention is {attention!r}, a kernel whose code would be fetched and run: set "
            f"model.trust_remote_code, or choose one of {', '.join(CHOICES)}."
        )
    path = folder / CONFIG
    for key, value in _entries(read_json(path), ()) if path.is_file() else ():
        if attention and key.endswith("attn_implementation"):
            continue  # The run file's takes its place.
        raise ModelError(
            f"{path} sets {key} to {value!r:.100}, a kernel whose code would be fetched and run: remove that line, set "
            f"model.attention to one of {', '.join(CHOICES)}, or, if you trust it, set model.trust_remote_code."
        )


def _entries(config: Any, above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield each setting, also of a part of the model, that names code of the hub, with its dotted key."""
    if isinstance(config, list):
        for part in config:
            yield from _entries(part, above)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        where = (*above, key)
        if _asks_for_code(key, value):
            yield ".".join(where), value
        elif isinstance(value, dict | list):
            yield from _entries(value, where)


def _asks_for_code(key: str, value: Any) -> bool:
    if key in ("use_kernels", "kernel_config", "hub_kernels"):
        return bool(value)
    if not key.endswith(("_implementation", "_implementation_internal")):
        return False
    choices = value.values() if isinstance(value, dict) else [value]
    return any(isinstance(choice, str) and _from_hub(choice) for choice in choices)


def _from_hub(implementation: str) -> bool:
    """Whether an implementation's name means code of the hub: org/name, or a library that isn't here."""
    name = implementation.rpartition("|")[2]
    if "/" in name:
        return True
    if not name.startswith("flash_attention") or find_spec("kernels") is None:
        return False
    library = LIBRARIES.get(name)
    return library is None or find_spec(library) is None
