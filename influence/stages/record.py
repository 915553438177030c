"""Which settings of a finished run may be changed by hand, and the record that all others are held to.

A build records every setting that decides an answer in the run's manifest, flat (`recipe.curvature.damping.value`). A
setting that is in no list is recorded, so a new one is protected until somebody says that it decides nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from influence.capture.fingerprint import setting_parts
from influence.config import RunConfig, override_config, settings_of
from influence.errors import ConfigError, FingerprintMismatch
from influence.store.manifest import Manifest, Part

WHERE_AND_HOW_FAST = (
    *(f"cluster.{name}" for name in ("kind", "address", "tls", "workers", "adapt", "job", "device", "dashboard")),
    *("cluster.threads_per_worker", "cluster.token_budget"),
    *("model.device_map", "model.gradient_checkpointing"),
    *("index.probes", "index.candidates", "index.device"),
)
"""Settings that say where queries are computed and in what portions, and the dials of an index."""
HELD_BY_CONTENT = (
    *("model.path", "model.tokeniser", "data.path", "recipe.gradient.state"),
    *("recipe.checkpoints.*.path", "recipe.checkpoints.*.state"),
)
"""Paths of files that may have moved: what is read there is held to the digest that the run recorded."""
CHANGEABLE = (*WHERE_AND_HOW_FAST, *HELD_BY_CONTENT)
"""All that may be changed in a run's `config.yaml` after its build; `*` stands for every item of a list."""

MISSING = "absent"


def changeable(setting: str) -> bool:
    """Whether a setting, written with dots, may be changed after the build."""
    steps = setting.split(".")
    return any(
        all(step in ("*", own) for step, own in zip(pattern, steps, strict=False)) and len(pattern) <= len(steps)
        for pattern in (name.split(".") for name in CHANGEABLE)
    )


def recorded_settings(config: RunConfig) -> dict[str, Part]:
    """Return every setting that decides an answer, flat."""
    return _protected(settings_of(config))


def check_settings(config: RunConfig, manifest: Manifest, path: Path) -> None:
    """Hold a run's configuration to the record of its build.

    Args:
        config: As `config.yaml` has it.
        manifest: Of the run.
        path: Of `config.yaml`, for messages.

    Raises:
        FingerprintMismatch: A setting that decides an answer was changed; each is named, with both values.
    """
    expected, found = manifest.settings, recorded_settings(config)
    if expected is None:
        # Built before settings were recorded: the fingerprint has those that decide the rows.
        known = setting_parts(config)
        parts = manifest.fingerprint_parts
        expected = {name: parts[name] for name in known if name in parts and not changeable(name)}
        found = {name: known[name] for name in expected}
    # A setting that is newer than the record has its default, unless somebody wrote it in.
    written = _protected(config.model_dump(mode="json", exclude_unset=True))
    names = [name for name in {**expected, **found} if name in expected or name in written]
    told = [
        f"{name} is {_shown(found, name)}, and the run was built with {_shown(expected, name)}"
        for name in names
        if _shown(found, name) != _shown(expected, name)
    ]
    if told:
        raise FingerprintMismatch(
            f"{path} is not as the build wrote it: {'; '.join(told)}. Its answers would not be those of the run. Put "
            "the old value back; or, for an answer with the new one, run the build again with --set: it keeps the rows "
            f"where they stay the same and records the change. By hand only these may be changed: "
            f"{', '.join(CHANGEABLE)}."
        )


def overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a finished run's configuration with some settings changed for one call, as `--set` writes them.

    Raises:
        ConfigError: A setting can't be used, or decides what the run's answers are.
    """
    if not overrides:
        return config
    keys = {override.partition("=")[0].strip() for override in overrides}
    if config.cluster.workers == 0 and keys & {"cluster.kind", "cluster.adapt"} and "cluster.workers" not in keys:
        # Who names another cluster wants its workers, and this process was to compute alone.
        overrides = ["cluster.workers=null", *overrides]
    changed = override_config(config, overrides)
    before, after = recorded_settings(config), recorded_settings(changed)
    fixed = [name for name in {**before, **after} if _shown(before, name) != _shown(after, name)]
    if fixed:
        raise ConfigError(
            f"{fixed[0]} decides what the answers of a run are, so a call can't change it: run the build again with "
            f"--set {fixed[0]}=…. A call may change {', '.join(WHERE_AND_HOW_FAST)}."
        )
    return changed


def _protected(settings: Mapping[str, Any]) -> dict[str, Part]:
    return {name: value for name, value in _flat(settings).items() if not changeable(name)}


def _flat(found: Any, above: str = "") -> dict[str, Part]:
    """Return settings by their dotted names; of a list of sections each by its number, of other lists their JSON."""
    if isinstance(found, Mapping) and found:
        items = found.items()
    elif isinstance(found, list | tuple) and found and all(isinstance(item, Mapping) for item in found):
        items = enumerate(found)
    else:
        return {above: found if isinstance(found, Part) else json.dumps(found, sort_keys=True)}
    return {
        name: value
        for key, below in items
        for name, value in _flat(below, f"{above}.{key}" if above else str(key)).items()
    }


def _shown(settings: Mapping[str, Part], name: str) -> str:
    return repr(settings[name]) if name in settings else MISSING


__all__ = ["CHANGEABLE", "changeable", "check_settings", "overridden", "recorded_settings"]
