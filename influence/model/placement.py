"""Where the layers of a model are that is larger than one GPU: spread over the GPUs of one machine.

transformers and accelerate load each part onto its device and carry activations from one to the next. Nothing may be
left on the disk or, beside GPUs, in the CPU's memory: such weights come to the GPU for a layer's forward pass, and the
backward pass, which needs every one of them again, would keep them all there.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from influence.errors import ModelError

Spread = Literal["auto", "balanced", "sequential"]


def _device_named(device: str | int) -> str | int:
    if isinstance(device, int) or device == "cpu" or re.fullmatch(r"cuda(:\d+)?", device):
        return device
    raise ValueError(
        f"{device!r} is no place for a layer: expected a GPU (0, cuda:0) or cpu. Weights that are left on the disk "
        "would all come back for the backward pass: use more GPUs, or model.dtype bfloat16"
    )


DeviceMap = Spread | dict[str, Annotated[str | Annotated[int, Field(ge=0)], AfterValidator(_device_named)]]
"""How to spread a model: by transformers' own rule, or {module: device}, '' for all that is not named."""


def resolve_device_map(device_map: DeviceMap | None, device: torch.device) -> Any:
    """Return the device map to load with; None loads onto the CPU as a whole.

    To spread over GPUs means nothing where the CPU computes, as a query may: there is one CPU.

    Raises:
        ModelError: The CPU computes, and the map names a GPU.
    """
    if isinstance(device_map, dict):
        return _of_kind(device_map, device)
    if device.type == "cpu":
        return None
    return device_map or {"": device}


def check_placed(model: Any, device_map: DeviceMap | None, device: torch.device, path: Path) -> None:
    """Refuse a model of which some part is elsewhere than on devices of the kind that computes.

    Raises:
        ModelError: A weight was left on the disk or on the CPU, or the map names a module that isn't there.
    """
    if device_map is None:
        return
    modules = dict(model.named_modules())
    unknown = [name for name in device_map if name not in modules] if isinstance(device_map, dict) else []
    if unknown:
        children = ", ".join([name for name in modules if name and name.count(".") < 2][:8])
        raise ModelError(
            f"model.device_map names {', '.join(unknown)}, and {type(model).__name__} has no such module; it has "
            f"{children}, …"
        )
    elsewhere = [name for name, weight in model.named_parameters() if weight.device.type != device.type]
    if elsewhere:
        size = sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e9
        raise ModelError(
            f"{len(elsewhere)} weights of {path} ({size:,.1f} GB on disk), first {elsewhere[0]}, found no place on the "
            f"{device.type} devices of this machine under model.device_map {device_map!r}. Weights that are loaded for "
            "one layer at a time would all come back for the backward pass: use more or larger GPUs, or model.dtype "
            "bfloat16; name every module, or '' for the rest, where the map is your own."
        )


def first_device(model: Any, device: torch.device) -> torch.device:
    """Return the device that a batch is sent to: that of the input embeddings."""
    home = model.get_input_embeddings().weight.device
    return home if home.type == device.type else device


def _of_kind(device_map: dict[str, str | int], device: torch.device) -> dict[str, str | int]:
    gpus = [name for name, place in device_map.items() if place != "cpu"]
    if device.type == "cpu" and gpus:
        raise ModelError(
            f"model.device_map puts {gpus[0] or 'the model'} on {device_map[gpus[0]]}, and the CPU computes here: set "
            "cluster.device to cuda, or leave model.device_map out (--set model.device_map=null)."
        )
    return device_map
