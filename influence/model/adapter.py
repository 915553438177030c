"""PEFT adapters, put onto the model they were trained on, with every one of their weights accounted for.

PEFT only warns about weights that an adapter file lacks and leaves those at their initial values; here that is an
error.
"""

import warnings
from pathlib import Path
from typing import Any

from safetensors import safe_open

from influence.errors import MissingExtra, ModelError
from influence.model.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    first_line,
    is_adapter,
    locate,
    read_json,
    weight_names,
)
from influence.model.layers import PROMPTS, no_layers
from influence.model.trained import remember_trained

PREFIX = "base_model.model."
"""What PEFT puts before the name that a weight has in the model underneath."""
OF_OTHERS = ("XLORA",)
"""PEFT's names for adapters made of others, which it looks for in folders and on the hub as its configuration says."""
HEADS = (".score.weight", ".classifier.weight", ".classifier.out_proj.weight")
"""What transformers calls the last layer of a sequence classifier."""


def base_folder(folder: Path) -> Path:
    """Return the folder of the model that adapters were trained on, as their configuration names it.

    Raises:
        ModelError: The configuration names none, or one that can't be found or is itself an adapter.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path: add the folder of the model it adapts."
        )
    base = locate(name, config.get("revision"), f"base_model_name_or_path in {folder / ADAPTER_CONFIG}")
    if is_adapter(base):
        raise ModelError(f"{folder} adapts {base}, which is itself an adapter. Merge that one into its model first.")
    return base


def supplied_weights(folder: Path) -> set[str]:
    """Return the weights that an adapter file holds, by the names they have in the model underneath.

    A classifier's head lies in the adapter file, so the model underneath may lack it.
    """
    return {name.removeprefix(PREFIX) for name in weight_names(folder / ADAPTER_WEIGHTS)}


def label_count(folder: Path) -> int | None:
    """Return how many labels the classifier's head in an adapter file has; None where it holds no such head.

    The model underneath was saved without that head, so its configuration doesn't know.
    """
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        heads = [name for name in tensors.keys() if name.endswith(HEADS)]  # noqa: SIM118, it is no mapping
        return tensors.get_slice(heads[0]).get_shape()[0] if len(heads) == 1 else None


def attach(base: Any, folder: Path, device: str) -> Any:
    """Put a folder's adapters onto their model, in the dtypes of the layers they adapt, and note what was trained.

    Raises:
        MissingExtra: `peft` isn't installed.
        ModelError: The adapters don't fit the model, learn a prompt, name other adapters, or the file lacks or exceeds
            their weights.
    """
    kind = str(read_json(folder / ADAPTER_CONFIG).get("peft_type"))
    if kind in PROMPTS:
        raise ModelError(f"{folder} holds {no_layers(kind)}")
    if kind in OF_OTHERS:
        raise ModelError(
            f"{folder} mixes other adapters ({kind}), which its {ADAPTER_CONFIG} names, wherever they are. Expected "
            "adapters whose weights lie in this folder: merge them into one (PEFT's add_weighted_adapter), and save it."
        )
    try:
        import peft
    except ImportError as error:
        raise MissingExtra(f"{folder} holds PEFT adapters: pip install 'influence[peft]'.") from error
    with warnings.catch_warnings():
        # What PEFT warns of (missing or surplus weights) is checked below, and is an error.
        warnings.simplefilter("ignore")
        try:
            model = peft.PeftModel.from_pretrained(
                base, folder, is_trainable=True, autocast_adapter_dtype=False, torch_device=device
            )
            expected = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
        except Exception as error:
            raise ModelError(
                f"The adapters in {folder} don't fit {type(base).__name__}: {first_line(error)}"
            ) from error
    names = weight_names(folder / ADAPTER_WEIGHTS)
    # Embeddings saved beside the adapters (a vocabulary that grew) belong to the model underneath.
    surplus = sorted(names - expected - set(model.state_dict()))
    missing = sorted(expected - names)
    if missing or surplus:
        lacks = (
            f"lacks {len(missing)} weights that its {ADAPTER_CONFIG} asks for ({', '.join(missing[:5])})"
            if missing
            else ""
        )
        holds = (
            f"holds {len(surplus)} weights that have no place in the model ({', '.join(surplus[:5])})"
            if surplus
            else ""
        )
        raise ModelError(
            f"{folder / ADAPTER_WEIGHTS} {' and '.join(filter(None, (lacks, holds)))}. Save the adapters again from "
            "the training run."
        )
    remember_trained(model)
    return model
