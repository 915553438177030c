"""The checks there are, in the order they are told, and their settings.

A check is a file of this room: a settings model, `lacks(subject)` – what it would need and isn't there, None if it
applies – and `check(subject, settings) -> Finding`. It is made part of the system by its lines here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from influence.errors import ConfigError
from influence.issues.checks import (
    conflicts,
    datalab,
    duplicates,
    empty,
    harmful,
    leak,
    mislabelled,
    mismatched,
    outliers,
    poisoned,
)
from influence.issues.checks.conflicts import ConflictSettings
from influence.issues.checks.datalab import CloseSettings, FarSettings, LabelSettings
from influence.issues.checks.duplicates import NearDuplicateSettings
from influence.issues.checks.empty import EmptySettings, ZeroGradientSettings
from influence.issues.checks.harmful import HarmfulSettings
from influence.issues.checks.leak import LeakSettings
from influence.issues.checks.mislabelled import MislabelledSettings
from influence.issues.checks.mismatched import MismatchedSettings
from influence.issues.checks.outliers import OutlierSettings
from influence.issues.checks.poisoned import PoisonSettings
from influence.issues.finding import Finding
from influence.issues.neighbors import NeighbourSettings
from influence.issues.subject import Subject
from influence.strict_yaml import parse_yaml

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        about: What it finds, in a few words.
        lacks: What the subject would need for it and hasn't; None where it applies.
        check: Looks.
        named_only: Whether it is made only where somebody names it.
        of_labels: Whether it looks for wrong labels.
    """

    about: str
    lacks: Callable[[Subject], str | None]
    check: Callable[[Subject, Any], Finding]
    named_only: bool = False
    of_labels: bool = False


class IssueSettings(BaseModel):
    """Settings of the neighbour graph and of every check, a section each; `--set mislabelled.neighbours=20`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    neighbours: NeighbourSettings = NeighbourSettings()
    mislabelled: MislabelledSettings = MislabelledSettings()
    mismatched: MismatchedSettings = MismatchedSettings()
    harmful: HarmfulSettings = HarmfulSettings()
    near_duplicate: NearDuplicateSettings = NearDuplicateSettings()
    leak: LeakSettings = LeakSettings()
    conflict: ConflictSettings = ConflictSettings()
    outlier: OutlierSettings = OutlierSettings()
    empty: EmptySettings = EmptySettings()
    zero_gradient: ZeroGradientSettings = ZeroGradientSettings()
    poisoned: PoisonSettings = PoisonSettings()
    cleanlab_label: LabelSettings = LabelSettings()
    cleanlab_outlier: FarSettings = FarSettings()
    cleanlab_near_duplicate: CloseSettings = CloseSettings()


CHECKS: dict[str, Check] = {
    "mislabelled": Check("with a wrong label", mislabelled.lacks, mislabelled.check, of_labels=True),
    "mismatched": Check("answers to another question", mismatched.lacks, mismatched.check),
    "harmful": Check("oppose the evaluation set", harmful.lacks, harmful.check),
    "near_duplicate": Check("copies of another row", duplicates.lacks, duplicates.check),
    "leak": Check("in the evaluation set too", leak.lacks, leak.check),
    "conflict": Check("same input, another answer", conflicts.lacks, conflicts.check),
    "outlier": Check("unlike every other row", outliers.lacks, outliers.check),
    "empty": Check("without text", empty.lacks, empty.check_empty),
    "zero_gradient": Check("teach nothing", empty.lacks, empty.check_zero_gradient),
    "poisoned": Check("promote an unwanted output", poisoned.lacks, poisoned.check),
    "cleanlab_label": Check(
        "cleanlab doubts the label", datalab.lacks_labels, datalab.check_label, named_only=True, of_labels=True
    ),
    "cleanlab_outlier": Check("far, says cleanlab", datalab.lacks_rows, datalab.check_outlier, named_only=True),
    "cleanlab_near_duplicate": Check(
        "near another row, says cleanlab", datalab.lacks_rows, datalab.check_near_duplicate, named_only=True
    ),
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
        found.setdefault(section, {})[key], _ = parse_yaml(text, f"--set {override!r}")
    try:
        return IssueSettings.model_validate(found)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


def settings_of(kind: type[Settings], **given: Any) -> Settings:
    """Return settings that were given as a call's arguments.

    Raises:
        ConfigError: A value that can't be; the message names it.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        told = (f"{problem['loc'][0]}: {problem['msg']} (found {problem['input']!r})." for problem in error.errors())
        raise ConfigError("\n".join(told)) from None


def names_in(given: Sequence[str] | str | None) -> list[str] | None:
    """Return names that were given one by one, or in one text with commas between them; None stays None."""
    names = given.split(",") if isinstance(given, str) else given
    return None if names is None else [name.strip() for name in names if name.strip()]


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
    there = ", ".join(model.model_fields)
    return f"--set {where}: there is no such setting; {f'there are {there}' if there else 'this check has none'}."


__all__ = ["CHECKS", "Check", "IssueSettings", "names_in", "parse_settings", "settings_of"]
