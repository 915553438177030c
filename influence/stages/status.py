"""How far a run is, read from its directory alone."""

from pathlib import Path
from typing import Any

from influence.artifacts.access import bytes_under, each
from influence.artifacts.lock import lock_holder
from influence.artifacts.place import run_path
from influence.capture.rows import RowShards
from influence.config import RunConfig
from influence.engine.note import read_note
from influence.errors import Incomplete
from influence.stages.configuration import CONFIG, recorded_configuration
from influence.stages.order import build_stages
from influence.store.manifest import Manifest
from influence.store.reader import missing_shards
from influence.store.shard import ShardFiles, ShardRecord


def status(path: str | Path) -> dict[str, Any]:
    """Return how far a run is, whether or not it is finished. Loads no model and connects to nothing.

    Returns:
        path, rows, dims, fingerprint, recipe; `coverage`, as `Coverage.to_dict`, or None where nobody measured it;
        `shards` and `shards_done`, `rows_done`, `bytes` of those done, `disk`, the bytes of all files, `tokens`,
        `zero_rows`, `quarantined`; `factors`, `curvature` and `index`, each `done`,
        `missing` or `not needed`; `complete`; `building`, what a build that is under way says of itself, or None.

    Raises:
        StoreError: There is no run, or its manifest or a shard's record can't be used: damaged (`DigestMismatch`) or
            of another version of the format (`FormatVersionMismatch`).
        ConfigError: Its configuration can't be used.
        FingerprintMismatch: A setting that decides its answers was changed since it was built.
        Incomplete: A build has begun and has nothing to show yet, or stopped that early.
    """
    run_dir = run_path(path)
    builder = lock_holder(run_dir)
    if builder and not (run_dir / CONFIG).exists():
        raise Incomplete(f"{run_dir} is being begun by {builder}, which still looks at the model and the data.")
    manifest = Manifest.load(run_dir)
    config = recorded_configuration(run_dir, manifest)
    absent = set(missing_shards(run_dir, manifest))
    there = [ShardFiles(run_dir, span) for span in manifest.shards if span.shard not in absent]
    records = list(each(ShardRecord.load, there, run_dir))
    needed = [stage for stage in build_stages(config, run_dir, manifest) if not isinstance(stage, RowShards)]
    parts = {stage.name: "done" if stage.stands() else "missing" for stage in needed}
    return {
        "path": str(run_dir),
        "complete": not absent and "missing" not in parts.values(),
        "rows": manifest.rows,
        "dims": manifest.dims,
        "shards": len(manifest.shards),
        "shards_done": len(records),
        "rows_done": sum(record.stop - record.start for record in records),
        "bytes": sum(record.size for record in records),
        "disk": bytes_under(run_dir),
        "tokens": sum(record.tokens for record in records),
        "zero_rows": sum(len(record.zero_rows) for record in records),
        "quarantined": [row.model_dump() for record in records for row in record.quarantined],
        **{name: parts.get(name, "not needed") for name in ("factors", "curvature", "index")},
        "coverage": manifest.coverage and manifest.coverage.to_dict(),
        "fingerprint": manifest.fingerprint,
        "recipe": config.recipe.summary,
        "building": read_note(run_dir),
    }


def missing_parts(run_dir: Path, manifest: Manifest, config: RunConfig) -> list[str]:
    """Return which of factors, curvature and index the recipe needs and the run lacks."""
    stages = build_stages(config, run_dir, manifest)
    return [stage.name for stage in stages if not isinstance(stage, RowShards) and not stage.stands()]
