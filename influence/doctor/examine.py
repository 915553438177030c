"""All checks, in the order in which one failing explains the next."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from influence.capture.opening import check_unchanged
from influence.capture.spec import checkpoint_files
from influence.config import RunConfig, override_config
from influence.data.dataset import open_rows
from influence.data.identity import DataIdentity
from influence.doctor.backward import ordinary_backward
from influence.doctor.check import Check
from influence.doctor.identities import batches, gradients, padding, token_sum
from influence.doctor.precision import precision
from influence.doctor.rows import seen
from influence.doctor.steps import copy_step, gradient_step
from influence.doctor.subject import Subject, capture_of, opened, sample, searched
from influence.doctor.surroundings import environment, whereabouts
from influence.doctor.texts import texts
from influence.errors import ConfigError
from influence.stages.configuration import open_configuration
from influence.store.manifest import Manifest


def examine_run(
    run_dir: Path, place: Path | None, overrides: Sequence[str] = (), *, row: int | None = None, trust: bool = False
) -> Iterator[Check]:
    """Yield every check of a run that was begun: of the model and the rows that it was built from.

    Args:
        run_dir: The run.
        place: As for `examine`.
        overrides: `key=value` each, to examine other settings than the run's; a model or data set that they name need
            not be the run's own.
        row: As for `examine`.
        trust: As for `influence.open`.

    Raises:
        StoreError: There is no run.
        FingerprintMismatch: The model, or a setting that decides the answers, has changed since the build.
        InfluenceError: See `examine`; the data are others now.
    """
    manifest = Manifest.load(run_dir)
    own = open_configuration(run_dir, manifest, trust=trust)
    config = override_config(own, overrides)
    files = [(each.model, checkpoint_files(each.recipe)) for each in (config, own)]
    if config.recipe.baseline != "bm25" and files[0] == files[1]:
        check_unchanged(config, run_dir, manifest)
    identity = DataIdentity.of(manifest.fingerprint_parts, manifest.rows, run_dir) if config.data == own.data else None
    yield from examine(config, place, row, run=run_dir, identity=identity)


def examine(
    config: RunConfig,
    place: Path | None = Path(),
    row: int | None = None,
    *,
    run: Path | None = None,
    identity: DataIdentity | None = None,
) -> Iterator[Check]:
    """Yield every check as it is done.

    Args:
        config: The run.
        place: A folder on the disk that the run is to stand on; None where it stands in a bucket.
        row: The row that is shown as the model sees it; None for one of those examined.
        run: The run's directory where it is built, whose scores are held to steps of the weights.
        identity: Of the run that the rows must be those of; None for a run to come.

    Raises:
        InfluenceError: The data or the model can't be used at all, so that there is nothing left to check.
    """
    yield from environment(config)
    rows = open_rows(config.data, identity)
    rows.check(config.model.kind)
    if config.recipe.baseline == "bm25":
        if row is not None:
            raise ConfigError(f"Row {row} can't be shown as a model sees it: bm25 reads words, with no model.")
        yield from texts(config, rows, place)
        return
    with opened(config) as session:
        session.check_classes(rows)
        yield from whereabouts(config, session, rows, place)
        looked, all_parts = searched(session, rows)
        examples, parts = sample(session, rows, looked, all_parts)
        yield from seen(session, rows, looked, all_parts, row)
        with capture_of(session) as capture:
            subject = Subject(session, capture, parts)
            alone = subject.alone()
            yield from gradients(subject, examples, alone)
            yield padding(subject, examples, alone)
            yield batches(subject, examples, alone)
            if config.recipe.baseline is None:
                yield token_sum(subject, examples)
        if config.recipe.baseline is None:
            yield from ordinary_backward(subject)
            yield gradient_step(subject)
            if run is not None:
                yield copy_step(config, run, subject)
        dtype = str(session.spec.model.dtype)
        del subject, capture, session
    yield precision(config, dtype, parts, alone)
