"""The configuration of a run, `config.yaml`: written and signed by the build, read against its record and signature."""

import logging
from pathlib import Path

from influence.artifacts.partial import write_whole
from influence.artifacts.regular import read_regular
from influence.config import RunConfig, dump_config, read_config
from influence.errors import ConfigError, FingerprintMismatch, Incomplete
from influence.stages.record import check_settings, recorded_settings
from influence.stages.resolved import resolved
from influence.stages.restriction import CONSENT, restricted
from influence.stages.signature import is_signed, sign
from influence.store.manifest import Manifest

CONFIG = "config.yaml"

log = logging.getLogger(__name__)


def write_configuration(config: RunConfig, run_dir: Path, manifest: Manifest) -> Manifest:
    """Write the configuration that a run now has, and sign it; return the manifest, which records its settings.

    Recipes over the same rows may change: then the record changes with the file.
    """
    settled = resolved(config, manifest)
    manifest = manifest.record(run_dir, recorded_settings(settled))
    content = dump_config(settled).encode()
    write_whole(run_dir / CONFIG, content)
    sign(run_dir, manifest.fingerprint, content)
    return manifest


def recorded_configuration(run_dir: Path, manifest: Manifest) -> RunConfig:
    """Return a run's configuration as its build recorded it: to be looked at, whoever it is of, and not computed with.

    Raises:
        Incomplete: There is none: the build stopped early.
        ConfigError: It can't be read.
        FingerprintMismatch: A setting that decides an answer was changed since the build.
    """
    return _checked(run_dir, manifest)[0]


def open_configuration(run_dir: Path, manifest: Manifest, *, trust: bool = False) -> RunConfig:
    """Return what a run is computed with. Of a run that this user didn't sign, what it asked for in vain is logged.

    Args:
        run_dir: The run.
        manifest: Of the run.
        trust: Do whatever the configuration asks for, whoever signed it.

    Raises:
        Incomplete: There is none: the build stopped early.
        ConfigError: It can't be read, or asks for something without which it can't be computed with.
        FingerprintMismatch: A setting that decides an answer was changed since the build.
    """
    config, content = _checked(run_dir, manifest)
    if trust or is_signed(run_dir, manifest.fingerprint, content):
        return config
    config, withheld = restricted(config, run_dir)
    for line in withheld:
        log.warning(
            "%s is not a run that you built, or its %s was changed since. It requested %s. %s.",
            *(run_dir, CONFIG, line, CONSENT),
        )
    return config


def _checked(run_dir: Path, manifest: Manifest) -> tuple[RunConfig, bytes]:
    try:
        return _read(run_dir, manifest)
    except FingerprintMismatch:
        # A build of another recipe over the same rows may have written one of the two files since they were read.
        return _read(run_dir, Manifest.load(run_dir))


def _read(run_dir: Path, manifest: Manifest) -> tuple[RunConfig, bytes]:
    path = run_dir / CONFIG
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise Incomplete(f"{run_dir} has no {CONFIG}: its build stopped early. Build it again.") from None
    try:
        config = read_config(content.decode(), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} can't be read as UTF-8: {error}. {_remedy(run_dir)}") from None
    except ConfigError as error:
        raise ConfigError(f"{error}\n{_remedy(run_dir)}") from None
    check_settings(config, manifest, path)
    return config, content


def _remedy(run_dir: Path) -> str:
    return f"{run_dir} can't be used with it. Put the file back, or run the same build again, which writes it again."


__all__ = ["CONFIG", "open_configuration", "recorded_configuration", "write_configuration"]
