"""A build from first to last: lock, probe, then its stages in order. Each does only what is missing."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from distributed import Client

from influence.artifacts.lock import LOCK
from influence.artifacts.place import absolute
from influence.capture.cut import most_shards
from influence.capture.fingerprint import probed_parts, settled_parts
from influence.capture.probe import probe_by
from influence.capture.rows import RowShards, report_zero_rows
from influence.capture.spec import CaptureSpec
from influence.config import RunConfig
from influence.data.dataset import Rows, open_rows
from influence.engine.cluster import connect
from influence.engine.dispatch import Workers, complete
from influence.engine.note import Note
from influence.engine.progress import Report
from influence.engine.run_lock import held
from influence.engine.worker import install
from influence.errors import Incomplete
from influence.stages.configuration import CONFIG, write_configuration
from influence.stages.factors import check_widths
from influence.stages.index import check_index, index_plan
from influence.stages.lexical_stage import check_rows, write_text_manifest
from influence.stages.manifest import software, write_manifest
from influence.stages.order import later_stages, row_stages
from influence.stages.partial_sums import remove_partials
from influence.stages.requirement import tell_memory
from influence.store.manifest import MANIFEST, Manifest, Part, check_fingerprint, fingerprint_of
from influence.store.reader import missing_shards

log = logging.getLogger(__name__)


def build_run(config: RunConfig, run_dir: Path, report: Report | None = None) -> None:
    """Build a run, or the part of it that is missing.

    Args:
        config: What to build.
        run_dir: Where. A directory that holds this run is completed; one that holds another is refused.
        report: Called with every step of every stage.

    Raises:
        FingerprintMismatch: The directory holds rows of another run; the message names the settings that differ.
        RunLocked: Another build is writing into it.
        Incomplete: Interrupted, or the disk is full: the same build goes on from there. Or rows were quarantined.
        InfluenceError: Anything else that is wrong with the settings, the data or the model.
    """
    # Workers that someone else started have another working directory than this process.
    run_dir = absolute(run_dir)
    rows = open_rows(config.data)
    rows.check(config.model.kind)
    if config.recipe.baseline == "bm25":
        check_rows(len(rows))
    else:
        check_index(config.index)
    with held(run_dir), closing(Note(run_dir, report)) as note:
        try:
            manifest = _complete(config, run_dir, rows, note)
            _tell_quarantined(run_dir, manifest)
        except KeyboardInterrupt:
            raise Incomplete(
                f"Interrupted. {_standing(run_dir)} Run the same build again to go on from there."
            ) from None


def _complete(config: RunConfig, run_dir: Path, rows: Rows, report: Report) -> Manifest:
    """Bring manifest, rows, curvature and index up to date. A cluster starts only if there is work for it."""
    settled, texts = settled_parts(config, rows), config.recipe.baseline == "bm25"
    manifest = _standing_manifest(run_dir, settled)
    first = manifest is None
    with _workers(config, run_dir, len(rows), manifest) as workers:
        if manifest is None:
            begin = _write_text_manifest if texts else _write_probed_manifest
            manifest = begin(config, run_dir, rows, settled, workers)
        *fits, shards = row_stages(config, run_dir, manifest, rows)
        assert isinstance(shards, RowShards), "the rows come last"
        if not first and not texts and shards.missing():
            # The same rows must come out as those that are there: other versions or another device are refused.
            _write_probed_manifest(config, run_dir, rows, settled, workers)
        manifest = write_configuration(config, run_dir, manifest)
        complete([*fits, shards], workers, report)
        manifest = manifest.quarantine(run_dir, shards.quarantined)
        report_zero_rows(shards.zero_rows, manifest.rows, config.recipe.baseline)
        complete(later_stages(config, run_dir, manifest), workers, report)
    remove_partials(run_dir)
    return manifest


def _workers(config: RunConfig, run_dir: Path, rows: int, manifest: Manifest | None) -> Workers:
    """Return the workers of a build, who start when there is a task for them."""

    @contextmanager
    def start() -> Iterator[Client]:
        most = len(manifest.shards) if manifest else most_shards(rows, config.store)
        tell_memory(config, rows, manifest.modules if manifest else None, most)
        with connect(config.cluster, most, run_dir) as client:
            install(client, local=config.cluster.here)
            yield client

    return Workers(start)


def _write_probed_manifest(
    config: RunConfig, run_dir: Path, rows: Rows, settled: dict[str, Part], workers: Workers
) -> Manifest:
    """Look at the model and the data on a worker, and write the manifest or agree with the one that stands."""
    probed = probe_by(workers, CaptureSpec.of(config), shared=run_dir / LOCK)
    check_widths(probed.modules, config.recipe)
    first = not (run_dir / MANIFEST).exists()
    manifest = write_manifest(config, run_dir, rows, settled, probed)
    # Refused now, where it can't be carried out, and not after hours of capture.
    index_plan(config.index, manifest)
    if first:
        tell_memory(config, len(rows), manifest.modules, len(manifest.shards))
    return manifest


def _write_text_manifest(
    config: RunConfig, run_dir: Path, rows: Rows, settled: dict[str, Part], workers: Workers
) -> Manifest:
    """Write the manifest of a run of `bm25`, without the model."""
    return write_text_manifest(config, run_dir, len(rows), settled, {"data": config.data.path, **software()})


def _standing_manifest(run_dir: Path, settled: dict[str, Part]) -> Manifest | None:
    """Return the manifest that stands, None where there is none.

    Raises:
        FingerprintMismatch: It differs in a part that is known already; no model need be loaded to say so.
    """
    if not (run_dir / MANIFEST).exists():
        return None
    manifest = Manifest.load(run_dir)
    wanted = {**probed_parts(manifest.fingerprint_parts), **settled}
    check_fingerprint(
        str(run_dir / MANIFEST), manifest.fingerprint, manifest.fingerprint_parts, fingerprint_of(wanted), wanted
    )
    return manifest


def _tell_quarantined(run_dir: Path, manifest: Manifest) -> None:
    """End as incomplete where rows were set aside; everything else is built.

    Raises:
        Incomplete: Some were; the first are named with their errors.
    """
    rows = manifest.quarantined
    if rows:
        named = "".join(f"\n  row {row.row} ({row.id}): {row.error}" for row in rows[:10])
        raise Incomplete(
            f"{len(rows)} of {manifest.rows} rows could not be captured and are set aside in {run_dir}: they score 0 "
            f"and {MANIFEST} lists them. All other rows are built and can be queried. The same build retries "
            f"them.{named}" + ("\n  …" if len(rows) > 10 else "")
        )


def _standing(run_dir: Path) -> str:
    """Say how much of a run is on disk."""
    if not (run_dir / MANIFEST).exists():
        return "Nothing was captured yet."
    manifest = Manifest.load(run_dir)
    total = len(manifest.shards)
    return f"{total - len(missing_shards(run_dir, manifest))} of {total} shards stand in {run_dir}."


__all__ = ["CONFIG", "build_run"]
