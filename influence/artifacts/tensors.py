"""Named tensors on disk with a commit record beside them: the curvature's sums and factors.

`name.safetensors` is written whole, then `name.json` with its digest, size and the fingerprint of what it was made
from. A file exists when its record does; nothing is unpickled.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from influence.artifacts.digest import FORMAT_VERSION, seal, unseal, verify
from influence.artifacts.excerpt import excerpt
from influence.artifacts.partial import PartialFile, disk_errors, sync_folder, write_whole
from influence.artifacts.path import ObjectPath
from influence.artifacts.place import is_remote
from influence.artifacts.regular import check_regular
from influence.errors import DigestMismatch

log = logging.getLogger(__name__)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write tensors and their record, replacing what stands there. The same tensors give the same bytes.

    Args:
        path: Ends in `.safetensors`; its folder is made if missing.
        tensors: On the CPU, contiguous.
        fingerprint: Of what they were made from.

    Raises:
        Incomplete: The disk is full; nothing half-written is left.
        StoreError: The folder can't be written to.
    """
    content = save(dict(tensors))
    record = path.with_suffix(".json")
    with disk_errors(path.parent, path.name, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        file = PartialFile(path)
        try:
            file.write(content)
            file.finish()
            file.publish()
            sync_folder(path.parent)
        finally:
            file.discard()
    document = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "digest": file.digest,
        "size": file.size,
        "tensors": {name: _digest(tensor) for name, tensor in tensors.items()},
    }
    write_whole(record, seal(document))


def saved_for(path: Path, fingerprint: str) -> bool:
    """Whether these tensors stand, made from what `fingerprint` names; their bytes aren't read.

    Damage that can be seen without reading them counts as absent, with a log line: they are made again.
    """
    found = _record(path)
    return (
        found is not None
        and found.get("fingerprint") == fingerprint
        and path.exists()
        and path.stat().st_size == found.get("size")
    )


def remove_tensors(path: Path) -> None:
    """Remove tensors that `save_tensors` wrote, the record first; nothing happens where there are none."""
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def load_tensors(path: Path, fingerprint: str, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Read tensors that `save_tensors` wrote.

    Args:
        path: As it was saved.
        fingerprint: Of what they must have been made from.
        names: Read these only, as far as they are there, and no other bytes of the file; None reads all.

    Raises:
        DigestMismatch: They are missing, damaged, or made from something else.
    """
    tensors = load(_content(path, fingerprint)) if names is None else _some(path, fingerprint, set(names))
    for name in tensors:
        # Products round by how their operands are aligned. Torch's own tensors start at a multiple of 64 bytes, those
        # that safetensors returns anywhere: only copied do they multiply to the same bits as those that were saved.
        tensors[name] = tensors[name].clone()
    return tensors


@contextmanager
def open_tensors(path: Path, fingerprint: str) -> Iterator[Any]:
    """Open tensors that `save_tensors` wrote, to read slices of them: `opened.get_slice(name)[start:stop]`, in numpy.

    Raises:
        DigestMismatch: They are missing, damaged, or made from something else.
    """
    assert not is_remote(path), "slices are read of files on a disk"
    _verified(path, fingerprint)
    with safe_open(path, "numpy") as opened:
        yield opened


def _verified(path: Path, fingerprint: str) -> None:
    found, remedy = _promised(path, fingerprint)
    verify(path, str(found.get("digest")), int(found.get("size", 0)), remedy)


def _content(path: Path, fingerprint: str) -> bytes:
    """Return a whole file's bytes, verified. From a bucket they come once."""
    if not is_remote(path):
        _verified(path, fingerprint)
        return path.read_bytes()
    record, remedy = _promised(path, fingerprint)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DigestMismatch(f"{path} is missing, and its record is there. {remedy}") from None
    found = sha256(content).hexdigest()
    if found != record.get("digest"):
        raise DigestMismatch(f"{path} has sha256 {found}, its record expects {record.get('digest')}. {remedy}")
    return content


def _promised(path: Path, fingerprint: str) -> tuple[dict[str, Any], str]:
    """Return a file's record, and what to do where the file isn't as it says."""
    remedy = f"Delete {path.with_suffix('.json')} and run the same command again: only this file is computed again."
    found = _record(path)
    if found is None or found.get("fingerprint") != fingerprint:
        made = "is missing" if found is None else f"was made for {found.get('fingerprint')}, expected {fingerprint}"
        raise DigestMismatch(f"{path} {made}. Run the same command again.")
    return found, remedy


def load_all(paths: Iterable[Path], fingerprint: str) -> dict[str, Tensor]:
    """Read several files' tensors as one; see `load_tensors`."""
    return {name: tensor for path in paths for name, tensor in load_tensors(path, fingerprint).items()}


def _some(path: Path, fingerprint: str, names: set[str]) -> dict[str, Tensor]:
    """Read some tensors of a file, each against its own digest."""
    record, remedy = _promised(path, fingerprint)
    held: dict[str, str] = record.get("tensors", {})
    tensors = {}
    try:
        if isinstance(path, ObjectPath):
            tensors = load(excerpt(path, names & held.keys()))
        else:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                for name in sorted(names & held.keys()):
                    tensors[name] = file.get_tensor(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise DigestMismatch(f"{path} can't be read: {error}. {remedy}") from None
    for name, tensor in tensors.items():
        found = _digest(tensor)
        if found != held[name]:
            raise DigestMismatch(f"{path}: {name} has the digest {found}, its record expects {held[name]}. {remedy}")
    return tensors


def _digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, in hex."""
    # One without elements may have a stride of 0, which no other type can be viewed through.
    flat = tensor.detach().contiguous().flatten() if tensor.numel() else torch.empty(0)
    return sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _record(path: Path) -> dict[str, Any] | None:
    record = path.with_suffix(".json")
    if not record.exists():
        return None
    try:
        return unseal(record, "Run the same build again.")
    except DigestMismatch as error:
        log.warning("%s is computed again: %s", path.name, error)
        return None
