"""From what a user typed to the path of a run: on this machine's disks, or in a bucket.

Text becomes a path here and nowhere else, because `pathlib.Path` turns `s3://bucket` into `s3:/bucket`, a local folder.
"""

from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import cast

from influence.artifacts.path import ObjectPath
from influence.errors import ConfigError, MissingExtra

LOCAL = ("file", "local")
BUCKETS = ("s3", "s3a")
"""What a run may stand on besides a disk: stores that create an object only where there is none, and show it once it is
whole. Others are refused until they have been held to the same tests."""

OTHERS = ("gs", "gcs", "abfs", "abfss", "az", "adl", "hdfs", "http", "https")
"""What else people keep files on, so that it is told from a local folder of that name."""


def run_path(place: str | Path) -> Path:
    """Return the path of a run directory, or of a file in one.

    Args:
        place: A local path, `file://…`, or `s3://bucket/folder`.

    Returns:
        A `pathlib.Path`, unchanged if it is one; or an `ObjectPath`, which has the same interface as far as runs need
        it, and is no `os.PathLike`: what takes it for a local file fails.

    Raises:
        ConfigError: No run can be kept there.
        MissingExtra: s3fs isn't installed.
    """
    if isinstance(place, ObjectPath):
        return cast(Path, place)
    if isinstance(place, Path):
        if _lost_a_slash(place):
            raise ConfigError(
                f"{place} is a pathlib.Path, which has lost a slash: give the text '{place.parts[0]}//"
                f"{'/'.join(place.parts[1:])}' instead."
            )
        return check_name(place, "the run directory")
    if not isinstance(place, str):
        raise ConfigError(f"{place!r} is a {type(place).__name__}; expected text or a pathlib.Path that names a run.")
    scheme, separator, rest = place.partition("://")
    if not separator:
        return check_name(Path(place), "the run directory")
    if scheme in LOCAL:
        return check_name(Path(rest), "the run directory")
    if scheme not in BUCKETS:
        raise ConfigError(
            f"{place}: no run can be kept on {scheme}://. Name a local folder, which may be on a shared disk, or "
            "s3://bucket/folder."
        )
    return cast(Path, _in_bucket(place, rest))


def check_name(path: Path, what: str) -> Path:
    """Return a local path, unless a name in it, or in the working directory that it is relative to, isn't UTF-8.

    The formats that name files (Parquet, JSON, YAML) and the libraries that open them take UTF-8 only.

    Raises:
        ConfigError: It isn't; the name is shown with its bytes.
    """
    for name in path.absolute().parts:
        check_text(name, f"{what} {path}")
    return path


def check_text(text: str, what: str) -> None:
    """Refuse text from the command line, or from a list of files, that isn't UTF-8.

    Raises:
        ConfigError: It isn't; its bytes are shown.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        # Python keeps a byte that is no UTF-8 as half of a surrogate pair.
        raise ConfigError(
            f"{what}: {text!a} isn't UTF-8 (a byte FF is shown as \\udcff), as every name in a run's files is. "
            "Where it is the name of a file or folder, rename it, or make a symbolic link to it with a name in UTF-8 "
            "and give that."
        ) from None


def absolute(path: Path) -> Path:
    """Return a run's path as one that doesn't depend on the working directory."""
    return path if is_remote(path) else path.absolute()


def is_remote(path: Path) -> bool:
    """Whether a path leads into a bucket."""
    return isinstance(path, ObjectPath)


def check_local(path: Path, what: str) -> None:
    """Refuse to write what isn't part of a run anywhere but on a disk.

    Raises:
        ConfigError: The path leads elsewhere.
    """
    if _lost_a_slash(path):
        raise ConfigError(
            f"{str(path).replace(':/', '://', 1)}: {what} can be written on this machine's disks only. Name a local "
            "path, and copy it from there."
        )


def _lost_a_slash(path: Path) -> bool:
    """Whether a local path was the text of another kind before `pathlib` made it one."""
    return bool(path.parts) and path.parts[0] in {f"{scheme}:" for scheme in (*BUCKETS, *OTHERS)}


def _in_bucket(place: str, rest: str) -> ObjectPath:
    parts = [part for part in rest.split("/") if part]
    if len(parts) < 2 or any(part in (".", "..") for part in parts):
        raise ConfigError(f"{place}: name a folder in a bucket, without . or .. in it: s3://bucket/runs/x.")
    if find_spec("s3fs") is None:
        raise MissingExtra(f"{place} needs s3fs, which isn't installed. Install it: pip install 'influence[s3]'.")
    return ObjectPath("s3", PurePosixPath(*parts))
