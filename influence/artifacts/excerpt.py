"""Some tensors of a safetensors object, by the ranges that hold them.

The library reads files on a disk, or bytes. What is made here are bytes of its format with the wanted tensors alone.
"""

import json
from collections.abc import Collection

from index.strict_json import parse_json
from influence.artifacts.path import ObjectPath

LENGTH = 8
"""Bytes of the header's length, which comes first."""
LONGEST = 100_000_000
"""Bytes of the longest header that the library reads."""


def excerpt(path: ObjectPath, names: Collection[str]) -> bytes:
    """Return a safetensors file in memory that holds these tensors of an object, as far as it has them.

    Raises:
        ValueError: The object isn't laid out as safetensors lays its files out.
    """
    size = path.stat().st_size
    (first,) = path.read_ranges([(0, LENGTH)])
    length = int.from_bytes(first, "little")
    if length > min(LONGEST, size):
        raise ValueError(f"its header would take {length:,} bytes")
    (text,) = path.read_ranges([(LENGTH, LENGTH + length)])
    try:
        header = parse_json(text)
        wanted = {name: header[name] for name in sorted(names) if name in header}
        spans = [(int(start), int(stop)) for start, stop in (entry["data_offsets"] for entry in wanted.values())]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header can't be read: {error}") from None
    begins = LENGTH + length
    if any(not 0 <= start <= stop <= size - begins for start, stop in spans):
        raise ValueError("its header names bytes beyond its end")
    content = path.read_ranges([(begins + start, begins + stop) for start, stop in spans])
    at, layout = 0, {}
    for (name, entry), piece in zip(wanted.items(), content, strict=True):
        layout[name] = {**entry, "data_offsets": [at, at + len(piece)]}
        at += len(piece)
    packed = json.dumps(layout).encode()
    packed += b" " * (-len(packed) % 8)
    return b"".join([len(packed).to_bytes(LENGTH, "little"), packed, *content])
