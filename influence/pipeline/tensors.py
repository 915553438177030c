"""Named tensors on disk with a commit record beside them: the curvature's sums and factors.

`name.safetensors` is written whole, then `name.json` with its digest, size and the fingerprint of what it was made
from. A file exists when its record does; nothing is unpickled.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from influence.errors import DigestMismatch
from influence.store.digest import FORMAT_VERSION, seal, unseal, verify
from influence.store.partial import PartialFile, disk_errors, sync_folder, write_whole

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
    document = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "digest": file.digest, "size": file.size}
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


def load_tensors(path: Path, fingerprint: str) -> dict[str, Tensor]:
    """Read tensors that `save_tensors` wrote.

    Raises:
        DigestMismatch: They are missing, damaged, or made from something else.
    """
    remedy = f"Delete {path.with_suffix('.json')} and run the same build again: only this file is made again."
    found = _record(path)
    if found is None or found.get("fingerprint") != fingerprint:
        made = "is missing" if found is None else f"was made for {found.get('fingerprint')}, expected {fingerprint}"
        raise DigestMismatch(f"{path} {made}. Run the same build again.")
    verify(path, str(found.get("digest")), int(found.get("size", 0)), remedy)
    tensors = load(path.read_bytes())
    for name in tensors:
        # Products round by how their operands are aligned. Torch's own tensors start at a multiple of 64 bytes, those
        # that safetensors returns anywhere: only copied do they multiply to the same bits as those that were saved.
        tensors[name] = tensors[name].clone()
    return tensors


def _record(path: Path) -> dict[str, Any] | None:
    record = path.with_suffix(".json")
    if not record.exists():
        return None
    try:
        return unseal(record, "Run the same build again.")
    except DigestMismatch as error:
        log.warning("%s is made again: %s", path.name, error)
        return None
