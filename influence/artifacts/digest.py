"""Files held to their SHA-256, and JSON documents that carry their own.

A digest is checked the first time a process touches a file; see `influence.artifacts.checksum`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from index.strict_json import parse_json
from influence.artifacts.checksum import cached_sha256, file_state, sha256
from influence.artifacts.regular import read_regular, unreadable
from influence.errors import DigestMismatch, FormatVersionMismatch, StoreError

FORMAT_VERSION = 1
"""The version of every file of the store; a reader refuses all others."""

_SEAL = "sha256"


def verify(path: Path, expected: str, size: int, remedy: str, *, again: bool = False) -> None:
    """Check that a file is the one that was committed.

    Args:
        path: The file.
        expected: Its hex SHA-256.
        size: Its length in bytes, compared first: a truncated file is named as such and isn't read.
        remedy: What to do about a damaged file; the message ends with it.
        again: Read the file even if this process has already checked it.

    Raises:
        DigestMismatch: The file is missing, has another length, or other bytes.
    """
    try:
        state = file_state(path)
    except FileNotFoundError:
        raise DigestMismatch(f"{path} is missing; its commit record expects {size:,} bytes. {remedy}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    _, found_size, *_ = state
    if found_size != size:
        raise DigestMismatch(
            f"{path} has {found_size:,} bytes, its commit record expects {size:,}: "
            f"it was truncated or replaced. {remedy}"
        )
    found = cached_sha256(path, state, again=again)
    if found != expected:
        raise DigestMismatch(f"{path} has sha256 {found}, its commit record expects {expected}. {remedy}")


def seal(document: dict[str, Any]) -> bytes:
    """Return a JSON document as bytes that carry their own SHA-256: the same document, the same bytes.

    One line a key, sorted, so that a manifest of ten thousand shards is still read at a glance.
    """
    digest = hashlib.sha256(_compact(document).encode()).hexdigest()
    lines = [f"{_compact(key)}: {_compact(value)}" for key, value in sorted({**document, _SEAL: digest}.items())]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def unseal(path: Path, remedy: str) -> dict[str, Any]:
    """Read a document that `seal` wrote, refusing any changed byte.

    Raises:
        StoreError: The file can't be read, or is no regular file: no reason to take its remedy, which is for damage.
        FormatVersionMismatch: Another version of the format wrote it.
        DigestMismatch: It isn't JSON, or its bytes aren't those that were sealed.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. {remedy}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        document = parse_json(content)
    except ValueError as error:
        raise DigestMismatch(f"{path} isn't the JSON document that was written: {error}. {remedy}") from None
    if not isinstance(document, dict):
        raise DigestMismatch(f"{path} holds {type(document).__name__}, expected a JSON object. {remedy}")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatVersionMismatch(
            f"{path} has format version {version!r}, this release reads and writes {FORMAT_VERSION}. "
            "Open the run with the release that wrote it, or build it again into another directory."
        )
    promised = document.pop(_SEAL, None)
    if seal(document) != content:
        found = hashlib.sha256(_compact(document).encode()).hexdigest()
        raise DigestMismatch(f"{path} has sha256 {found} over its content, it promises {promised}. {remedy}")
    return document


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


__all__ = ["FORMAT_VERSION", "seal", "sha256", "unseal", "verify"]
