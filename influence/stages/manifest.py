"""The manifest that a run begins with: what was asked for, and what a look at the model and the data came to."""

import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from influence.capture.cut import held_bytes, plan_shards, rows_per_shard
from influence.capture.fingerprint import Probed, all_parts
from influence.config import RunConfig
from influence.data.dataset import Rows
from influence.store.manifest import Manifest, Part, fingerprint_of

log = logging.getLogger(__name__)

SOFTWARE = ("influence", "torch", "transformers", "tokenizers", "datasets", "numpy")


def write_manifest(config: RunConfig, run_dir: Path, rows: Rows, settled: dict[str, Part], probed: Probed) -> Manifest:
    """Write the manifest of a run that has been probed, or agree with the one that stands; return the latter."""
    per_shard = rows_per_shard(
        len(rows), held_bytes(config.store, probed.modules, len(config.recipe.checkpoints)), config.store
    )
    parts = all_parts(settled, probed, per_shard)
    manifest = Manifest(
        fingerprint=fingerprint_of(parts),
        fingerprint_parts=parts,
        modules=probed.modules,
        dims=probed.dims,
        rows=len(rows),
        codec=config.store.codec,
        rank=config.store.rank,
        shards=plan_shards(len(rows), per_shard),
        meta=_meta(config, probed),
        coverage=probed.coverage,
    )
    manifest.save(run_dir)
    if config.recipe.baseline == "repsim" and manifest.codec == "bits":
        log.warning(
            "Mean last hidden states are kept at one bit a coordinate, which loses most of their order: in a trial "
            "39 % of the ten best stayed among the ten best. They are narrow: set store.codec to float16, which loses "
            "none."
        )
    # What stands is what counts: its `meta` may tell of other software.
    standing = Manifest.load(run_dir)
    log.info(
        "Rows: %d, shards: %d, columns: %d of %d layers, computed in %s on %s.",
        manifest.rows,
        len(manifest.shards),
        manifest.dims,
        len(manifest.modules),
        probed.dtype,
        probed.device_name,
    )
    if probed.coverage is not None:
        log.info("Coverage: %s.", probed.coverage.summary)
    return standing


def _meta(config: RunConfig, probed: Probed) -> dict[str, Any]:
    return {
        "model": config.model.path,
        "data": config.data.path,
        "task": config.model.kind,
        "reduction": config.task.reduction,
        "dtype": probed.dtype,
        "device": probed.device_name,
        **software(),
    }


def software() -> dict[str, str | None]:
    """Return the versions of what a run is made with."""
    return {"python": platform.python_version(), **{name: _version(name) for name in SOFTWARE}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
