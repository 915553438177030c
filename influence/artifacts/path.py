"""A path into a bucket: as much of `pathlib.Path`'s interface as the files of a run need, over fsspec.

An object appears when its upload is complete and whole: there is nothing to rename and nothing to flush. A folder is
what keys begin with; making and removing one does nothing. Nothing is cached, because other machines write here too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from hashlib import sha256
from io import BufferedReader, RawIOBase
from os import getpid
from pathlib import PurePosixPath
from typing import Any

READ_BYTES = 2**20
"""What a reader asks for at least: a request takes as long as some megabytes do."""


@dataclass(frozen=True)
class ObjectState:
    """What tells one content of an object from another, by the names that `os.stat_result` has for it.

    Attributes:
        st_size: In bytes.
        st_mtime_ns: When it was written, in nanoseconds.
        st_ino: A number made of its ETag.
        tag: The ETag.
    """

    st_size: int
    st_mtime_ns: int
    st_ino: int
    tag: str


class ObjectPath:
    """One key, or what keys begin with. Immutable; goes to workers as text, and they use their own credentials."""

    __slots__ = ("_key", "_protocol")

    def __init__(self, protocol: str, key: PurePosixPath) -> None:
        """Set up; `influence.artifacts.place.run_path` checks what a user typed.

        Args:
            protocol: fsspec's name of the store.
            key: Bucket and key.
        """
        self._protocol, self._key = protocol, key

    @property
    def fs(self) -> Any:
        """The filesystem, one a process."""
        return _filesystem(self._protocol, getpid())

    @property
    def key(self) -> str:
        """Bucket and key, as the filesystem takes them."""
        return str(self._key)

    @property
    def name(self) -> str:
        """The last part."""
        return self._key.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._key.stem

    @property
    def suffix(self) -> str:
        """The suffix of the last part."""
        return self._key.suffix

    @property
    def parent(self) -> "ObjectPath":
        """The folder that it is in."""
        return ObjectPath(self._protocol, self._key.parent)

    @property
    def parents(self) -> Sequence["ObjectPath"]:
        """The folders above it, up to the bucket."""
        return [ObjectPath(self._protocol, key) for key in self._key.parents if key.parts]

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self._protocol, self._key / name)

    def with_name(self, name: str) -> "ObjectPath":
        """Return its neighbour of another name."""
        return ObjectPath(self._protocol, self._key.with_name(name))

    def with_suffix(self, suffix: str) -> "ObjectPath":
        """Return its neighbour of another suffix."""
        return ObjectPath(self._protocol, self._key.with_suffix(suffix))

    def relative_to(self, above: "ObjectPath") -> PurePosixPath:
        """Return the way from a folder above to it."""
        return self._key.relative_to(above._key)

    def resolve(self) -> "ObjectPath":
        """Return itself: there are no links."""
        return self

    def absolute(self) -> "ObjectPath":
        """Return itself."""
        return self

    def __str__(self) -> str:
        return f"{self._protocol}://{self._key}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __lt__(self, other: "ObjectPath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectPath, (self._protocol, self._key)

    def exists(self) -> bool:
        """Whether there is such an object, or one below it."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below it, and none of its own name."""
        return self._kind() == "directory"

    def stat(self) -> ObjectState:
        """Return what tells this content from another.

        Raises:
            FileNotFoundError: There is no such object.
        """
        found = self.fs.info(self.key)
        if found["type"] != "file":
            raise FileNotFoundError(2, "No such object", str(self))
        return _state(found)

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what is in a folder, from one listing; nothing where there is none."""
        try:
            found = self.fs.ls(self.key, detail=False)
        except FileNotFoundError:
            return
        for key in found:
            if key.strip("/") != self.key:
                yield ObjectPath(self._protocol, PurePosixPath(key))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield what is in a folder and has such a name; patterns of one step only."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every object below it, by its way from here; from one listing."""
        return {name: state.st_size for name, state in self.states().items()}

    def states(self) -> dict[str, ObjectState]:
        """Return the states of every object below it, by its way from here; from one listing."""
        found = self.fs.find(self.key, detail=True)
        return {key.removeprefix(f"{self.key}/"): _state(info) for key, info in found.items()}

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        return self.fs.cat_file(self.key)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes [start, stop) of each range, asked for at the same time; shorter where the object ends."""
        wanted = [(start, stop) for start, stop in ranges if stop > start]
        starts, stops = [start for start, _ in wanted], [stop for _, stop in wanted]
        found = iter(self.fs.cat_ranges([self.key] * len(wanted), starts, stops, on_error="raise") if wanted else ())
        return [next(found) if stop > start else b"" for start, stop in ranges]

    def open(self, mode: str = "rb", buffering: int = READ_BYTES) -> BufferedReader:
        """Open the object to be read from any place on; at least `buffering` bytes are asked for at a time."""
        assert mode == "rb", "objects are written whole: see influence.artifacts.upload"
        return BufferedReader(_Ranges(self), buffering)

    def write_bytes(self, content: bytes) -> None:
        """Write an object, replacing what is there, in one request."""
        self.fs.pipe_file(self.key, content)

    def create(self, content: bytes) -> None:
        """Write an object where there is none.

        Raises:
            FileExistsError: There is one.
        """
        self.fs.pipe_file(self.key, content, mode="create")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        if not missing_ok:
            self.stat()
        self.fs.rm_file(self.key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders come with what is in them, and no bucket is ever made."""

    def rmdir(self) -> None:
        """Do nothing: folders go with what is in them."""

    def _kind(self) -> str | None:
        # fsspec's own questions of this kind take every error for a no.
        try:
            return self.fs.info(self.key)["type"]
        except FileNotFoundError:
            return None


def _state(found: dict[str, Any]) -> ObjectState:
    tag, written = str(found.get("ETag", "")), found.get("LastModified")
    number = int(sha256(tag.encode()).hexdigest()[:15], 16)
    return ObjectState(int(found["size"]), int(written.timestamp() * 1e9) if written else 0, number, tag)


class _Ranges(RawIOBase):
    """An object as a raw stream."""

    def __init__(self, path: ObjectPath) -> None:
        self._path, self._size, self._at = path, path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, into: Any) -> int:
        into = memoryview(into).cast("B")
        stop = min(self._size, self._at + len(into))
        if stop <= self._at:
            return 0
        (found,) = self._path.read_ranges([(self._at, stop)])
        into[: len(found)] = found
        self._at += len(found)
        return len(found)


@cache
def _filesystem(protocol: str, process: int) -> Any:
    """Return the filesystem of a process, whichever of its threads asks."""
    assert protocol == "s3", f"{protocol} isn't one of influence.artifacts.place.BUCKETS"
    from influence.artifacts.s3 import S3

    return S3(use_listings_cache=False, skip_instance_cache=True, max_concurrency=1)
