"""An object on its way: it appears under its name when it is complete, or never.

Small ones are held and go up in one request. Larger ones go up in parts as they come, so that what is held is a part;
S3 shows nothing of them until the last request has put the parts together.
"""

from typing import Any

from influence.artifacts.path import ObjectPath

PART_BYTES = 2**25
"""10,000 parts are the most that S3 takes: 320 GB."""


class Upload:
    """A writable stream into an object."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._held = bytearray()
        self._parts: Any = None
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes and return how many."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PART_BYTES):
            piece = view[start : start + PART_BYTES]
            if self._parts is None and len(self._held) + len(piece) <= PART_BYTES:
                self._held += piece
                continue
            if self._parts is None:
                fs, key = self._path.fs, self._path.key
                self._parts = fs.open(key, "wb", block_size=PART_BYTES, autocommit=False)
                self._parts.write(self._held)
                self._held = bytearray()
            self._parts.write(piece)
        return len(view)

    def finish(self) -> None:
        """Send what is left; there is no object yet."""
        self.closed = True
        if self._parts is not None:
            self._parts.close()

    def publish(self) -> None:
        """Make the object appear, replacing what is there."""
        if self._parts is None:
            self._path.write_bytes(bytes(self._held))
        else:
            self._parts.commit()
            self._parts = None

    def discard(self) -> None:
        """Drop what was sent, unless it was published."""
        self.closed = True
        parts, self._parts, self._held = self._parts, None, bytearray()
        if parts is not None:
            parts.discard()
            # Its finaliser would otherwise send what is left to an upload that is no more.
            parts.closed = True
