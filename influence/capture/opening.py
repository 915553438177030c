"""What a finished run is computed with, as workers and queries are told, and its session in this process."""

from pathlib import Path
from typing import Literal

from influence.capture.drawn import drawn_of
from influence.capture.factor_files import factor_files
from influence.capture.fingerprint import digested, expected_digests
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.config import RunConfig
from influence.data.canonical import READING
from influence.data.columns import Columns
from influence.data.identity import DataIdentity
from influence.errors import FingerprintMismatch
from influence.store.manifest import Manifest


def run_spec(config: RunConfig, path: Path, manifest: Manifest, *, fitted: bool = True) -> CaptureSpec:
    """Return what a worker is told of a run that has a manifest, with the digests that it must find.

    Args:
        config: Of the run.
        path: The run.
        manifest: Of the run.
        fitted: Whether its projection reads the factors; not while they are fitted.
    """
    parts = manifest.fingerprint_parts
    factors = factor_files(path, manifest, config.recipe) if fitted else ()
    spec = CaptureSpec.of(config, factors, drawn_of(parts))
    identity = DataIdentity.of(parts, manifest.rows, path)
    return spec.model_copy(update={"digests": expected_digests(config, parts), "identity": identity})


def open_session(config: RunConfig, path: Path, manifest: Manifest, device: Literal["auto", "cpu", "cuda"]) -> Session:
    """Load a run's model in this process, under the capture of its rows.

    Raises:
        FingerprintMismatch: The model, its tokeniser, a checkpoint or an optimiser's state has changed since the rows
            were captured, or trak's projector draws other numbers here.
    """
    check_unchanged(config, path, manifest)
    session = Session(run_spec(config, path, manifest).model_copy(update={"device": device, "digests": ()}))
    check_modules(session, path, manifest)
    return session


def check_unchanged(config: RunConfig, path: Path, manifest: Manifest) -> None:
    """Refuse to ask another model than the rows were captured with. Reads the weights once.

    Raises:
        FingerprintMismatch: The model, its tokeniser, a checkpoint or an optimiser's state has changed since.
    """
    parts = manifest.fingerprint_parts
    columns = Columns.model_validate_json(str(parts["data.columns"]))
    if parts.get("data.reading", 1) != READING and (columns.messages or columns.input_ids):
        raise FingerprintMismatch(
            f"{path} was built by a release that read {'chats' if columns.messages else 'rows of tokens'} otherwise: "
            "columns beside them (tools, attention_mask, …) were left out. Build the run again."
        )
    for part, (what, found) in digested(config).items():
        if found != parts[part]:
            raise FingerprintMismatch(
                f"The {what} has changed since {path} was built: its digest is {found}, the manifest expects "
                f"{parts[part]}. Put the old one back, or build another run."
            )


def check_modules(session: Session, path: Path, manifest: Manifest) -> None:
    """Refuse a session whose rows would have other columns than the run's.

    Raises:
        FingerprintMismatch: They do.
    """
    if session.modules != manifest.modules:
        raise FingerprintMismatch(
            f"The model's tracked layers come to {session.dims} columns, {path} has {manifest.dims} or other layers: "
            "this is another version of transformers or of this package than the run was built with."
        )
