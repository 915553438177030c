"""A run file: YAML plus `--set key=value`, composed of the settings that the rooms own.

Every key is known or an error that names it, its file, the keys that are allowed there and a near miss. Relative
paths in a run file are relative to the file's folder; those given with `--set` are relative to the working directory.
`save_config` writes the whole resolved configuration, so that building from it gives the same run.
"""

import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from index.settings import IndexSettings
from influence.artifacts.partial import write_whole
from influence.artifacts.place import check_text, is_remote
from influence.cluster import ClusterSettings
from influence.data.dataset import DataSettings
from influence.errors import ConfigError, InfluenceError, RecipeError
from influence.model.load import ModelSettings
from influence.paths import absolute_paths
from influence.recipes import Recipe, recipe
from influence.store.manifest import StoreSettings
from influence.strict_yaml import Lines, parse_yaml
from influence.task import TaskSettings

MAX_BYTES = 1 << 22
"""Of a run file, whose text `parse_yaml` bounds more closely."""


class RunConfig(BaseModel):
    """Everything that decides a run; the rooms own the parts. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    data: DataSettings
    task: TaskSettings = TaskSettings()
    recipe: Recipe = recipe()
    store: StoreSettings = StoreSettings()
    index: IndexSettings = IndexSettings()
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("recipe", mode="before")
    @classmethod
    def _named_recipe(cls, value: Any) -> Any:
        """Read `logra`, or `{name: logra, projection: {p: 64}}`: a preset with some parts changed."""
        if isinstance(value, str):
            return recipe(value)
        if not isinstance(value, Mapping) or value.get("name", "custom") == "custom":
            return value
        if not isinstance(value["name"], str):
            raise RecipeError(f"name is {value['name']!r}; expected the name of a recipe, such as logra.")
        parts = dict(value)
        for short, part, key in (("damping", "curvature", "damping"), ("seed", "projection", "seed")):
            if short in parts and key in (parts.get(part) or {}):
                raise RecipeError(
                    f"Both {short} and {part}.{key} are given; the first is short for the second: keep one."
                )
        return recipe(parts.pop("name"), **parts)

    @field_validator("recipe", mode="after")
    @classmethod
    def _can_be_built(cls, value: Recipe) -> Recipe:
        """Refuse what a build would pass over in silence, and what it would look for in vain."""
        if value.curvature.whole and value.checkpoints:
            raise ValueError(
                f"no build has {value.curvature.kind} of whole gradients under several checkpoints yet: take "
                "projection kind kronecker, its rows whitened, and curvature identity, or influence.pairwise"
            )
        if value.needs_factors and value.projection.kind == "trak":
            raise ValueError(
                "no build has Kronecker factors under a trak projection: take projection kind kronecker, or exact none"
            )
        if any(checkpoint.path is None for checkpoint in value.checkpoints):
            raise ValueError("a checkpoint without a path: name the model folder of each, recipe.checkpoints[…].path")
        states = value.optimiser_states(len(value.checkpoints) or 1)
        if value.gradient.kind == "adam" and None in states:
            where = "each checkpoint's state" if len(states) > 1 else "recipe.gradient.state"
            raise ValueError(
                f"{value.name} divides by an optimiser's second moments, and the run file names none: set {where} to "
                "the checkpoint folder of the training (with its optimizer.pt)"
            )
        return value

    @model_validator(mode="after")
    def _a_mean_over_tokens(self) -> "RunConfig":
        """Refuse a mean loss where there is none, and where the tokens it is the mean of can't be told."""
        if self.task.reduction == "mean" and self.recipe.baseline is None:
            if "training" in (self.recipe.curvature.damping.kind, self.recipe.exact.damping.kind):
                raise ValueError(
                    "damping of kind training is of losses that are summed over their tokens, and task.reduction is "
                    "mean. The nearest that can be: reduction sum, or damping kind relative"
                )
            if self.model.kind == "sequence_classification":
                raise ValueError("task.reduction is mean, and a classifier's loss is of one label: leave it out")
            if self.data.long_rows == "split" and self.recipe.curvature.kind == "fisher":
                raise ValueError(
                    "under task.reduction mean a Fisher of stored rows needs each row's tokens, and with "
                    "data.long_rows split a row is a sum of means over its parts. The nearest that can be: long_rows "
                    "truncate, reduction sum, or a recipe without a Fisher, such as whitened"
                )
        return self

    @model_validator(mode="after")
    def _one_worker_a_spread_model(self) -> "RunConfig":
        """Refuse several workers that would all spread their models over the same GPUs."""
        cluster = self.cluster
        if self.model.device_map is None:
            if cluster.job.gpus > 1:
                raise ValueError(
                    f"cluster.job.gpus is {cluster.job.gpus}, and a worker computes on one GPU: take 1 and more jobs, "
                    "or set model.device_map for a model that is larger than one GPU"
                )
            return self
        if cluster.here and (cluster.kind == "cuda" or cluster.workers not in (0, 1)):
            several = "adapt" if cluster.adapt else f"workers {cluster.workers}"
            found = "kind cuda" if cluster.kind == "cuda" else several
            raise ValueError(
                f"model.device_map gives all GPUs of a machine to one worker, and cluster has {found}: set "
                "cluster.kind to local and cluster.workers to 1"
            )
        if cluster.queued and cluster.job.workers > 1:
            raise ValueError("model.device_map gives all GPUs of a job to one worker: set cluster.job.workers to 1")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file.

    Args:
        path: A YAML file with the sections model, data, task, recipe, store, index, cluster.
        overrides: `key=value` each, the key dotted (`data.max_tokens=256`), the value read as YAML.

    Raises:
        ConfigError: The file can't be read, or one or more of its settings can't be used: one line for each.
    """
    path = Path(path) if isinstance(path, str) else path
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # of a pipe or a device nobody knows how much it holds
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_BYTES:,} bytes, the most that a run file may have.")
        source = content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no run file {path}. Copy one from configs/ and edit it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read as a UTF-8 run file: {error}.") from None
    return read_config(source, path, overrides)


def read_config(source: str, path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration that a run file's text is; `path` is where it stands. See `load_config`."""
    found, lines = _sections(source, str(path))
    return parse_config(found, overrides, folder=path.parent, origin=str(path), lines=lines)


def parse_config(
    found: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    origin: str = "configuration",
    lines: Mapping[tuple[Any, ...], int] | None = None,
) -> RunConfig:
    """Check a mapping of sections and settings and return it as a configuration; see `load_config`."""
    # What a build keeps in a bucket is absolute already, and no relative path leads out of there.
    merged = dict(found) if folder and is_remote(folder) else absolute_paths(dict(found), folder or Path.cwd())
    changed = {_override(merged, override) for override in overrides}
    merged = absolute_paths(merged, Path.cwd(), only=changed)
    try:
        config = RunConfig.model_validate(merged)
        _check_truths(merged, config, ())
        return config
    except RecipeError as error:
        raise ConfigError(f"{_place(origin, ('recipe',), lines, changed)}: recipe: {error}") from None
    except _Truth as error:
        place = _place(origin, error.steps, lines, changed)
        raise ConfigError(
            f"{place}: {'.'.join(map(str, error.steps))}: Input should be a number (found {error.value})."
        ) from None
    except InfluenceError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except ValidationError as error:
        told = [_explain(problem, _place(origin, problem["loc"], lines, changed)) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(told))) from None


def override_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration with some settings changed, as `--set` does."""
    return parse_config(settings_of(config), overrides) if overrides else config


def save_config(config: RunConfig, path: Path) -> None:
    """Write the whole configuration as YAML, replacing the file in one step."""
    write_whole(path, dump_config(config).encode())


def dump_config(config: RunConfig) -> str:
    """Return the whole configuration as YAML, sections in their usual order."""
    return yaml.dump(settings_of(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return every setting by section, but of the columns only those that were named: a given name must be there."""
    found = config.model_dump(mode="json")
    found["data"]["columns"] = config.data.columns.model_dump(mode="json", exclude_unset=True)
    return found


class _Truth(Exception):
    """A number that was given as true or false, which pydantic takes for 1 and 0."""

    def __init__(self, steps: tuple[Any, ...], value: bool) -> None:
        self.steps, self.value = steps, value


def _check_truths(written: Any, read: Any, steps: tuple[Any, ...]) -> None:
    if isinstance(written, bool):
        if isinstance(read, int | float) and not isinstance(read, bool):
            raise _Truth(steps, written)
    elif isinstance(written, Mapping):
        for key, value in written.items():
            below = read.get(key) if isinstance(read, Mapping) else getattr(read, str(key), None)
            _check_truths(value, below, (*steps, key))
    elif isinstance(written, list) and isinstance(read, list | tuple):
        for number, (value, below) in enumerate(zip(written, read, strict=False)):
            _check_truths(value, below, (*steps, number))


class _Dumper(yaml.SafeDumper):
    """A dumper that writes everything out: a run file with aliases is refused."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _sections(source: str, origin: str) -> tuple[dict[str, Any], Lines]:
    """Return the file's mapping and the line of each of its keys."""
    found, lines = parse_yaml(source, origin)
    if not isinstance(found, dict):
        what = "is empty" if found is None else f"holds a {type(found).__name__}"
        raise ConfigError(f"{origin} {what}; a run file is a mapping of sections: {', '.join(RunConfig.model_fields)}.")
    return found, lines


def _override(merged: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one `key=value` in place and return the key's steps."""
    key, equals, text = override.partition("=")
    steps = tuple(step.strip() for step in key.split("."))
    if not equals or not all(steps):
        raise ConfigError(f"--set {override!r}: expected key=value with a dotted key, as in data.max_tokens=256.")
    check_text(text, f"--set {key}")
    value, _ = parse_yaml(text, f"--set {override!r}")
    section = merged
    for depth, step in enumerate(steps[:-1]):
        below = section.get(step)
        if steps[: depth + 1] == ("recipe",) and isinstance(below, str):
            below = {"name": below}
        if below is None:
            below = {}
        if not isinstance(below, Mapping):
            raise ConfigError(
                f"--set {override!r}: {'.'.join(steps[: depth + 1])} is {below!r}, it has no settings below it."
            )
        section[step] = dict(below)
        section = section[step]
    section[steps[-1]] = value
    return steps


def _place(
    origin: str, loc: Sequence[Any], lines: Mapping[tuple[Any, ...], int] | None, changed: set[tuple[str, ...]]
) -> str:
    """Return where a setting came from: `--set`, or the file and, where known, its line."""
    steps = tuple(loc)
    if any(steps[: len(change)] == change for change in changed):
        return "--set"
    for end in range(len(steps), 0, -1):
        if lines and steps[:end] in lines:
            return f"{origin}:{lines[steps[:end]]}"
    return origin


def _explain(problem: Any, place: str) -> str:
    """Turn one of pydantic's problems into a line: where, what was found, what is allowed."""
    steps = [str(step) for step in problem["loc"]]
    where = ".".join(steps) or "the configuration"
    if problem["type"] == "extra_forbidden":
        allowed = _allowed(steps[:-1])
        near = get_close_matches(steps[-1], allowed, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        above = f"in {'.'.join(steps[:-1])}" if steps[:-1] else "at the top"
        return f"{place}: unknown key {where}. Allowed {above}: {', '.join(allowed)}.{hint}"
    if problem["type"] == "missing":
        return f"{place}: {where} is missing and has no default."
    if problem["type"] == "string_unicode":
        try:
            check_text(str(problem["input"]), f"{place}: {where}")
        except ConfigError as error:
            return str(error)
    if problem["type"] == "model_type":
        allowed = ", ".join(_allowed(steps))
        return f"{place}: {where} is {problem.get('input')!r}; expected settings below it: {allowed}."
    said = str(problem["msg"]).removeprefix("Value error, ")
    found = "" if isinstance(problem.get("input"), Mapping | BaseModel) else f" (found {problem.get('input')!r})"
    return f"{place}: {where}: {said}{found}."


def _allowed(steps: Sequence[str]) -> list[str]:
    """Return the keys that are allowed in a section."""
    model: type[BaseModel] = RunConfig
    for step in steps:
        field = model.model_fields.get(step)
        below = _model_in(field.annotation) if field else None
        if below is None:
            return []
        model = below
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the settings model of a field's type, also of `Settings | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
    return None


__all__ = [
    "ClusterSettings",
    "RunConfig",
    "dump_config",
    "load_config",
    "override_config",
    "parse_config",
    "read_config",
    "save_config",
    "settings_of",
]
