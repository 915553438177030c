"""The checks there are, in the order they are told, and their settings.

A check is a file of this room: a settings model, `lacks(subject)` – what it would need and isn't there, None if it
applies – and `check(subject, settings) -> Finding`. It is made part of the system by its lines here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from influence.diagnose import empty
from influence.diagnose.empty import EmptySettings, ZeroGradientSettings
from influence.diagnose.finding import Finding
from influence.diagnose.neighbours import NeighbourSettings
from influence.diagnose.subject import Subject
from influence.errors import ConfigError


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        about: What it finds, in a few words.
        lacks: What the subject would need for it and hasn't; None where it applies.
        check: Looks.
    """

    about: str
    lacks: Callable[[Subject], str | None]
    check: Callable[[Subject, Any], Finding]


class IssueSettings(BaseModel):
    """Settings of the neighbour graph and of every check, a section each; `--set mislabelled.neighbours=20`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    neighbours: NeighbourSettings = NeighbourSettings()
    empty: EmptySettings = EmptySettings()
    zero_gradient: ZeroGradientSettings = ZeroGradientSettings()


CHECKS: dict[str, Check] = {
    "empty": Check("without text", empty.lacks, empty.check_empty),
    "zero_gradient": Check("teach nothing", empty.lacks, empty.check_zero_gradient),
}


def parse_settings(overrides: Sequence[str]) -> IssueSettings:
    """Return the settings with some changed, `section.key=value` each.

    Raises:
        ConfigError: One isn't of that form, names nothing that there is, or has a value that can't be.
    """
    found: dict[str, dict[str, Any]] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise ConfigError(f"--set {override!r}: expected section.key=value, as in near_duplicate.jaccard=0.9.")
        try:
            found.setdefault(section, {})[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    try:
        return IssueSettings.model_validate(found)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    """Turn one of pydantic's problems into a line."""
    where = ".".join(str(step) for step in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"--set {where}: {problem['msg'].removeprefix('Value error, ')} (found {problem.get('input')!r})."
    model: type[BaseModel] = IssueSettings
    if len(problem["loc"]) > 1:
        model = next(
            kind
            for kind in (IssueSettings.model_fields[problem["loc"][0]].annotation,)
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return f"--set {where}: there is no such setting; there are {', '.join(model.model_fields)}."


__all__ = ["CHECKS", "Check", "IssueSettings", "parse_settings"]
