"""A build from first to last: look, lock, probe, capture, curvature, index. Each step does only what is missing."""

import logging
from contextlib import closing
from pathlib import Path

from distributed import Client

from influence.artifacts.lock import LOCK
from influence.artifacts.place import absolute
from influence.capture import rows as capture_stage
from influence.capture.cut import most_shards
from influence.capture.drawn import drawn_of
from influence.capture.factor_files import factor_files
from influence.capture.fingerprint import Probed, expected_digests, probed_parts, settled_parts
from influence.capture.probe import ProbeTask, run_probe, try_probe
from influence.capture.spec import CaptureSpec, FactorFiles
from influence.config import RunConfig
from influence.data.dataset import Rows, open_rows
from influence.data.identity import DataIdentity
from influence.engine.cluster import connect
from influence.engine.note import Note
from influence.engine.poison import run_surviving
from influence.engine.progress import Progress, Report
from influence.engine.run_lock import held
from influence.engine.threads import torch_threads
from influence.engine.worker import install
from influence.errors import Incomplete
from influence.recipes import Recipe
from influence.stages import factors as factor_stage
from influence.stages import fisher as curvature_stage
from influence.stages import index as index_stage
from influence.stages import lexical_stage
from influence.stages.approximate import build_approximate, index_tasks
from influence.stages.configuration import CONFIG, write_configuration
from influence.stages.lexical_index import build_lexical
from influence.stages.manifest import software, write_manifest
from influence.stages.mirror import filled
from influence.stages.partial_sums import remove_partials
from influence.stages.requirement import tell_memory
from influence.stages.resolved import resolved
from influence.store.manifest import (
    MANIFEST,
    Manifest,
    Part,
    Quarantined,
    ShardRange,
    check_fingerprint,
    fingerprint_of,
)
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
    by_words = config.recipe.baseline == "bm25"
    if not by_words:
        index_stage.check_index(config.index)
    rows = open_rows(config.data)
    rows.check(config.model.kind)
    with held(run_dir), closing(Note(run_dir, report)) as note:
        try:
            settled = settled_parts(config, rows)
            manifest = (_keep_texts if by_words else _capture)(config, run_dir, rows, settled, note)
            _finish(config.recipe.stored, config, run_dir, manifest, note)
            _tell_quarantined(run_dir, manifest)
        except KeyboardInterrupt:
            raise Incomplete(
                f"Interrupted. {_standing(run_dir)} Run the same build again to go on from there."
            ) from None


def _capture(config: RunConfig, run_dir: Path, rows: Rows, settled: dict[str, Part], report: Report | None) -> Manifest:
    """Bring manifest, rows and partial sums up to date. A cluster starts only if there is work for it."""
    manifest = _standing_manifest(run_dir, settled)
    todo, zeros = capture_stage.missing(run_dir, manifest) if manifest else ([], [])
    stored = config.recipe.stored
    if (
        manifest
        and not todo
        and not _curvature_work(stored, run_dir, manifest)
        and factor_stage.factors_stand(run_dir, manifest, config.recipe)
        and not _index_work(config, run_dir, manifest)
    ):
        manifest = write_configuration(config, run_dir, manifest).quarantine(run_dir, ())
        Progress("capture", len(manifest.shards), report, done=len(manifest.shards))
        capture_stage.report_zero_rows(zeros, manifest.rows, stored.baseline)
        return manifest
    most = len(manifest.shards) if manifest else most_shards(len(rows), config.store)
    tell_memory(config, len(rows), manifest.modules if manifest else None, most)
    with connect(config.cluster, most, run_dir) as client:
        install(client, local=config.cluster.here)
        if manifest is None or todo:
            probed = probe_on(client, CaptureSpec.of(config), shared=run_dir / LOCK)
            factor_stage.check_widths(probed.modules, config.recipe)
            first = manifest is None
            manifest = write_manifest(config, run_dir, rows, settled, probed)
            # Refused now, where it can't be carried out, and not after hours of capture.
            index_stage.index_plan(config.index, manifest)
            if first:
                tell_memory(config, len(rows), manifest.modules, len(manifest.shards))
                todo, zeros = capture_stage.missing(run_dir, manifest)
        manifest = write_configuration(config, run_dir, manifest)
        _fit_factors(client, config, run_dir, manifest, report)
        found, quarantined = _capture_shards(client, config, run_dir, manifest, todo, report)
        zeros = sorted(zeros + found)
        manifest = manifest.quarantine(run_dir, quarantined)
        capture_stage.report_zero_rows(zeros, manifest.rows, stored.baseline)
        if _curvature_work(stored, run_dir, manifest):
            _sum_curvature(client, stored, run_dir, manifest, report)
        if _index_work(config, run_dir, manifest):
            _decompose(stored, config, run_dir, manifest)
            stage = Progress("index", index_tasks(manifest, config.index), report)
            threads = config.cluster.threads_per_worker
            build_approximate(client, run_dir, manifest, stored, config.index, threads, stage)
    return manifest


def _keep_texts(
    config: RunConfig, run_dir: Path, rows: Rows, settled: dict[str, Part], report: Report | None
) -> Manifest:
    """Bring manifest and texts of a run of `bm25` up to date, in this process and without the model."""
    lexical_stage.check_rows(len(rows))
    manifest = _standing_manifest(run_dir, settled)
    if manifest is None:
        meta = {"data": config.data.path, **software()}
        manifest = lexical_stage.write_manifest(config, run_dir, len(rows), settled, meta)
    todo, zeros = capture_stage.missing(run_dir, manifest)
    manifest = write_configuration(config, run_dir, manifest)
    stage = Progress("capture", len(manifest.shards), report, done=len(manifest.shards) - len(todo))
    zeros = sorted(zeros + lexical_stage.write_texts(config, run_dir, manifest, rows, todo, stage))
    capture_stage.report_zero_rows(zeros, manifest.rows, config.recipe.baseline)
    return manifest


def _capture_shards(
    client: Client, config: RunConfig, run_dir: Path, manifest: Manifest, todo: list[ShardRange], report: Report | None
) -> tuple[list[int], list[Quarantined]]:
    done = len(manifest.shards) - len(todo)
    if done:
        log.info("%d of %d shards stand already.", done, len(manifest.shards))
    stage = Progress("capture", len(manifest.shards), report, done=done)
    if not todo:
        return [], []
    factors = factor_files(run_dir, manifest, config.recipe)
    spec = _spec(config, run_dir, manifest, factors)
    return capture_stage.capture_missing(client, spec, run_dir, manifest, todo, stage)


def _spec(config: RunConfig, run_dir: Path, manifest: Manifest, factors: tuple[FactorFiles, ...] = ()) -> CaptureSpec:
    """Return what workers are told of a run that has a manifest."""
    parts = manifest.fingerprint_parts
    spec = CaptureSpec.of(resolved(config, manifest), factors, drawn_of(parts))
    identity = DataIdentity.of(parts, manifest.rows, run_dir)
    return spec.model_copy(update={"digests": expected_digests(config, parts), "identity": identity})


def _fit_factors(client: Client, config: RunConfig, run_dir: Path, manifest: Manifest, report: Report | None) -> None:
    if factor_stage.factors_stand(run_dir, manifest, config.recipe):
        return
    stage = Progress("factors", factor_stage.factor_steps(run_dir, manifest, config.recipe), report)
    spec = _spec(config, run_dir, manifest)
    factor_stage.fit_factors(client, spec, run_dir, manifest, config.recipe, stage)


def _sum_curvature(client: Client, recipe: Recipe, run_dir: Path, manifest: Manifest, report: Report | None) -> None:
    total = len(curvature_stage.plan_partials(run_dir, manifest, recipe))
    todo = curvature_stage.missing_partials(run_dir, manifest, recipe)
    curvature_stage.sum_missing(client, todo, Progress("curvature", total, report, done=total - len(todo)))


def _curvature_work(recipe: Recipe, run_dir: Path, manifest: Manifest) -> bool:
    """Whether partial sums are wanted: the recipe's factors aren't there and some partial isn't either."""
    if curvature_stage.curvature_stands(run_dir, manifest, recipe):
        return False
    return bool(curvature_stage.missing_partials(run_dir, manifest, recipe))


def _decompose(recipe: Recipe, config: RunConfig, run_dir: Path, manifest: Manifest) -> None:
    if not curvature_stage.curvature_stands(run_dir, manifest, recipe):
        with torch_threads(config.cluster.threads_per_worker):
            curvature_stage.decompose(run_dir, manifest, recipe)


def _index_work(config: RunConfig, run_dir: Path, manifest: Manifest) -> bool:
    """Whether an approximate index is wanted and isn't there: workers make it."""
    if index_stage.index_plan(config.index, manifest).factory is None:
        return False
    return not index_stage.index_stands(run_dir, manifest, config.recipe.stored, config.index)


def _finish(recipe: Recipe, config: RunConfig, run_dir: Path, manifest: Manifest, report: Report | None) -> None:
    """Decompose the curvature and build an index that isn't approximate, in this process and without the cluster."""
    _decompose(recipe, config, run_dir, manifest)
    remove_partials(run_dir)
    if recipe.baseline != "bm25" and index_stage.index_plan(config.index, manifest).factory is not None:
        return
    stands = index_stage.index_stands(run_dir, manifest, recipe, config.index)
    stage = Progress("index", 1, report, done=int(stands))
    if not stands:
        if recipe.baseline == "bm25":
            with filled(run_dir / index_stage.FOLDER) as folder:
                build_lexical(run_dir, folder, manifest)
        else:
            with torch_threads(config.cluster.threads_per_worker):
                index_stage.build_index(run_dir, config.index, index_stage.load_comparison(run_dir, manifest, recipe))
        stage.finished()


def probe_on(client: Client, spec: CaptureSpec, shared: Path | None = None) -> Probed:
    """Probe a specification on one worker of a cluster."""
    task = ProbeTask(spec, shared)
    (probed,) = run_surviving(client, run_probe, try_probe, [task], lambda: spec.data.quarantine)
    return probed


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


__all__ = ["CONFIG", "build_run", "probe_on"]
