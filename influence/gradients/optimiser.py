"""The second moments that an Adam-like optimiser kept, by the name of the parameter.

Read are a training checkpoint's `optimizer.pt` (a torch optimiser's state dict) and safetensors files with a tensor
`exp_avg_sq.<parameter name>` each. A state dict numbers its parameters, and a number taken for the wrong name would
scale one layer by another's moments. So names come from the file where it has them (`param_names`, or names in place of
numbers); else they are those of transformers' `Trainer`: the weights that decay, then the others, or of an
optimiser with a single group all of them, each in the order of `named_parameters`. Sizes of groups and every shape
must then agree.

The moments are those that Adam divides by, with the bias of the running mean taken out: v̂ = v / (1 − β₂ᵗ), under
AMSGrad the largest v so far in the place of v. Xia et al. write it so; Adafactor's second moment, which Chang et al.
divide by, has no such bias to begin with. Within one optimiser t is the same almost everywhere, so v̂ is v times one
number: it decides what ε means, and nothing else under cosine.

No pickle that a stranger could have written is ever opened, and weights are read from safetensors alone. An
optimiser's state has no other format: torch and transformers write pickles. `optimizer.pt` is read with
`weights_only=True`, which rebuilds tensors, numbers and plain containers and refuses to call anything else, and only
where `recipe.gradient.state` names it: it is the user's own training's. A file of anyone else's belongs in safetensors.

Sources: Kingma & Ba 2015, algorithm 1; Xia et al. 2024 (LESS), section 3.1; Chang et al. 2024 (TrackStar), section 3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from influence.errors import OptimiserMismatch
from influence.model.folder import digest, first_line

FILES = ("optimizer.pt", "optimizer.bin")
PREFIX = "exp_avg_sq."
SHOWN = 6
"""How many parameters of each side a message lists."""

Shape = tuple[int, ...]


def read_second_moments(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Return v̂ of every parameter that the optimiser has stepped, by its name in the model; float32 or float64.

    Args:
        path: An `optimizer.pt`, the checkpoint folder that holds it, or a safetensors file. The latter's metadata may
            have `beta2` and `step`, and v̂ is made from them; without, its tensors are taken as v̂.
        model: The model that was trained. Where the file numbers its parameters, those that were trained are the ones
            that require gradients; of a model all frozen, its adapters' if it has any, else all.

    Raises:
        OptimiserMismatch: No such file, one that can't be read or holds no second moments, or parameters that aren't
            the model's; the message lists both sides.
    """
    file = state_file(path)
    moments = _from_safetensors(file) if file.suffix == ".safetensors" else _from_state(file, model)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    actual = {name: tuple(moment.shape) for name, moment in moments.items()}
    strange = {name: shape for name, shape in actual.items() if expected.get(name) != shape}
    if strange:
        same = {name: expected[name] for name in strange if name in expected}
        unclaimed = {name: shape for name, shape in expected.items() if name not in actual}
        raise OptimiserMismatch(
            f"{file} has {len(strange)} parameters that {type(model).__name__} hasn't, or has in another shape: "
            f"{listed(strange)}. The model has {listed(same or unclaimed or expected)}. Name the state of this model's "
            "own training."
        )
    return moments


def state_file(path: str | Path) -> Path:
    """Return the file that a path stands for: itself, or the optimiser's state in a checkpoint folder.

    Raises:
        OptimiserMismatch: There is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise OptimiserMismatch(f"recipe.gradient.state is {path}, and there is no such file or folder.")
    for name in FILES:
        if (path / name).is_file():
            return path / name
    names = sorted(entry.name for entry in path.iterdir())
    raise OptimiserMismatch(
        f"recipe.gradient.state is the folder {path}, which holds no {FILES[0]}; it holds {', '.join(names[:8])}. Name "
        "a checkpoint-* folder of the training that kept its optimiser's state, or a safetensors file."
    )


def state_digest(path: str | Path) -> str:
    """Return a sha256 over the optimiser's state, which decides the rows as much as the weights do."""
    return digest((state_file(path),))


def _from_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            about = tensors.metadata() or {}
            moments = {
                name.removeprefix(PREFIX): tensors.get_tensor(name)
                for name in tensors.keys()  # noqa: SIM118 – it is no mapping
                if name.startswith(PREFIX)
            }
            foreign = [name for name in tensors.keys() if not name.startswith(PREFIX)]  # noqa: SIM118
    except Exception as error:
        raise OptimiserMismatch(f"{file} can't be read as safetensors: {first_line(error)}") from error
    if not moments:
        raise OptimiserMismatch(
            f"{file} holds {', '.join(foreign[:SHOWN]) or 'no tensors'}; expected tensors {PREFIX}<parameter name>."
        )
    if ("beta2" in about) != ("step" in about):
        raise OptimiserMismatch(
            f"The metadata of {file} has only one of beta2 and step ({about}): give both, and the bias of the running "
            "mean is taken out; or neither, where the tensors are without it."
        )
    if "beta2" not in about:
        return {name: _wide(moment) for name, moment in moments.items()}
    group = {"betas": (0.0, float(about["beta2"]))}
    return {
        name: _second_moment(file, name, {"exp_avg_sq": moment, "step": float(about["step"])}, group)
        for name, moment in moments.items()
    }


def _from_state(file: Path, model: nn.Module) -> dict[str, Tensor]:
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise OptimiserMismatch(
            f"{file} can't be read as an optimiser's state: {first_line(error)} Read are tensors and plain numbers "
            f"only. Write the second moments as safetensors instead, a tensor {PREFIX}<parameter name> each."
        ) from error
    if not isinstance(contents, dict) or not {"state", "param_groups"} <= set(contents):
        keys = ", ".join(map(str, list(contents)[:SHOWN])) if isinstance(contents, dict) else type(contents).__name__
        raise OptimiserMismatch(
            f"{file} holds {keys}; expected a torch optimiser's state dict, with state and param_groups. Write the "
            f"second moments of another as safetensors, a tensor {PREFIX}<parameter name> each."
        )
    state, groups = contents["state"], contents["param_groups"]
    moments: dict[str, Tensor] = {}
    for names, group in zip(_names(file, model, state, groups), groups, strict=True):
        for name, number in zip(names, group["params"], strict=True):
            if number in state:
                moments[name] = _second_moment(file, name, state[number], group)
    return moments


def _names(
    file: Path, model: nn.Module, state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """Return the names of each group's parameters."""
    if all(isinstance(number, str) for group in groups for number in group["params"]):
        return [list(group["params"]) for group in groups]
    if all(len(group.get("param_names", ())) == len(group["params"]) for group in groups):
        return [list(group["param_names"]) for group in groups]
    parameters = _trainer_groups(model, len(groups))
    # A parameter that never had a gradient has a number and no state.
    shapes = [[_shape(state.get(number, {}).get("exp_avg_sq")) for number in group["params"]] for group in groups]
    agree = [len(group) for group in shapes] == [len(group) for group in parameters] and all(
        shape in (None, expected)
        for group, names in zip(shapes, parameters, strict=True)
        for shape, expected in zip(group, names.values(), strict=True)
    )
    if not agree:
        raise OptimiserMismatch(_both_sides(file, model, shapes, parameters))
    return [list(group) for group in parameters]


def _trainer_groups(model: nn.Module, groups: int) -> list[dict[str, Shape]]:
    """Return the parameters of each group of the optimiser that the Trainer makes: names and shapes, in order."""
    trained = {name: tuple(parameter.shape) for name, parameter in _trained(model).items()}
    if groups == 1:
        return [trained]
    from transformers import Trainer

    # The rule is a method of the Trainer that reads nothing of the Trainer.
    decaying = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    return [
        {name: shape for name, shape in trained.items() if (name in decaying) == decays} for decays in (True, False)
    ]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that were trained; a model loaded to be looked at has all of them frozen."""
    parameters = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    # PEFT's wrappers say in `adapter_layer_names` which of their children are the trained ones.
    adapters = tuple(
        f"{name}.{child}."
        for name, module in model.named_modules()
        for child in getattr(module, "adapter_layer_names", ())
        if child in module._modules
    )
    return trained or {name: weight for name, weight in parameters.items() if name.startswith(adapters)} or parameters


def _second_moment(file: Path, name: str, entry: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    kind = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    if kind not in entry or "step" not in entry or "betas" not in group:
        raise OptimiserMismatch(
            f"{file} holds {', '.join(map(str, entry)) or 'nothing'} for {name}; expected Adam's step and {kind}. "
            "Adafactor and 8-bit optimisers keep their second moments in other forms, SGD none: write them as "
            f"safetensors, a tensor {PREFIX}<parameter name> each, or leave recipe.gradient at raw."
        )
    beta, step = float(group["betas"][1]), float(entry["step"])
    if not (0 <= beta < 1 and step >= 1):
        raise OptimiserMismatch(f"{file} has step {step:g} and β₂ = {beta:g} for {name}; expected a step of 1 or more.")
    return _wide(entry[kind]) / (1 - beta**step)


def _wide(moment: Tensor) -> Tensor:
    return moment if moment.dtype == torch.float64 else moment.float()


def _shape(moment: Tensor | None) -> Shape | None:
    return None if moment is None else tuple(moment.shape)


def _both_sides(
    file: Path, model: nn.Module, actual: Sequence[Sequence[Shape | None]], parameters: Sequence[Mapping[str, Shape]]
) -> str:
    there = [shape for group in actual for shape in group]
    here = [pair for group in parameters for pair in group.items()]
    pairs = zip(there, here, strict=False)
    same = min(len(there), len(here))
    first = next((place for place, (shape, (_, expected)) in enumerate(pairs) if shape not in (None, expected)), same)
    shapes = ", ".join(str(shape or "not stepped") for shape in there[first : first + SHOWN]) or "nothing"
    counted = [" + ".join(str(len(group)) for group in side) for side in (actual, parameters)]
    return (
        f"{file} numbers its parameters and doesn't name them, and they aren't those of {type(model).__name__} in the "
        f"Trainer's order. The file has {counted[0]} parameters, from number {first} on {shapes}, …; the model has "
        f"{counted[1]}, there {listed(dict(here[first:]))}. Name the state of this model's own training, give the "
        f"optimiser's groups param_names, or write safetensors with a tensor {PREFIX}<parameter name> each."
    )


def listed(shapes: Mapping[str, Shape]) -> str:
    """Return the first few names and shapes, for a message."""
    entries = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:SHOWN]) or "nothing"
    return entries + (f", … ({len(shapes)} in all)" if len(shapes) > SHOWN else "")
