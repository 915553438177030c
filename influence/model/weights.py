"""Whether a loaded model's weights are those of its checkpoint: all of them, no others, and every value finite."""

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from influence.errors import ModelError
from influence.model.folder import CONFIG, read_json


def check_complete(model: Any, report: dict[str, Any], path: Path, kind: str, supplied: Set[str]) -> None:
    """Refuse a checkpoint that doesn't give exactly the weights of the model it was loaded as.

    Args:
        model: The model that was loaded.
        report: transformers' loading info: the names of missing, unexpected and mismatched weights.
        path: The checkpoint's folder.
        kind: The kind of model asked for, for the message.
        supplied: Weights that may be missing because adapters bring them.

    Raises:
        ModelError: Weights are missing, left over, or of another shape.
    """
    target = type(model).__name__
    architectures = read_json(path / CONFIG).get("architectures") or ["another target"]
    other_kind = (
        f"It was saved as {', '.join(architectures)} and model.kind is {kind!r}: set the kind it was trained as, or "
        "name the right folder."
    )
    mismatched = sorted(report["mismatched_keys"], key=str)
    if mismatched:
        # transformers 5 gives (name, found, expected), 4.57 the name alone.
        first = mismatched[0]
        name = first if isinstance(first, str) else f"{first[0]} is {tuple(first[1])}, expected {tuple(first[2])}"
        raise ModelError(
            f"{len(mismatched)} weights in {path} have another shape than {CONFIG} says: {name}. The configuration "
            "belongs to another checkpoint."
        )
    missing = sorted(set(report["missing_keys"]) - supplied)
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} weights that {target} needs ({_list(missing)}); they would be random. "
            f"{other_kind}"
        )
    left_over = sorted(report["unexpected_keys"])
    # Adapters that bring a head of their own replace the one that the model underneath was saved with.
    if left_over and not set(report["missing_keys"]):
        raise ModelError(
            f"{path} holds {len(left_over)} weights that {target} has no place for ({_list(left_over)}); leaving them "
            f"out would make it another model. {other_kind} If {target} is right, load it once with from_pretrained, "
            "save it with save_pretrained, and name that folder."
        )
    if report.get("error_msgs"):
        raise ModelError(f"{path} could not be read as {target}: {'; '.join(map(str, report['error_msgs'][:3]))}")


def check_finite(model: Any, path: Path, dtype: torch.dtype) -> None:
    """Refuse a model with a parameter that holds NaN or an infinity.

    Raises:
        ModelError: It names the first such parameter and counts the others.
    """
    parameters = {
        name: weight for name, weight in model.named_parameters() if weight.is_floating_point() and weight.numel()
    }
    if not parameters:
        return
    # The extremes of a weight are NaN or infinite if any of its values is: one pass, no mask, one wait for the device.
    home = next(iter(parameters.values())).device
    ranges = [torch.stack(torch.aminmax(weight.detach())).float().to(home) for weight in parameters.values()]
    extremes = torch.stack(ranges)
    finite = torch.isfinite(extremes).all(dim=1).tolist()
    bad = [name for name, is_finite in zip(parameters, finite, strict=True) if not is_finite]
    if not bad:
        return
    weight = parameters[bad[0]].detach()
    nans, values = int(torch.isnan(weight).sum()), weight.numel()
    infinities = int(torch.isinf(weight).sum())
    rest = f" (and {len(bad) - 1} other parameters: {_list(bad[1:])})" if len(bad) > 1 else ""
    narrow = (
        " If the file's values are finite they overflow in float16: set model.dtype." if dtype == torch.float16 else ""
    )
    raise ModelError(
        f"{bad[0]} in {path} holds {nans:,} NaN and {infinities:,} infinite of {values:,} values{rest}: every "
        f"gradient would be NaN. The training run diverged or the file is damaged; use an earlier checkpoint.{narrow}"
    )


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
