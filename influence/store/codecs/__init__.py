"""The codecs, one per file, and the list of their names."""

from collections.abc import Sequence

from influence.axes import ModuleColumns
from influence.store.codec import Codec, CodecName, CodecSettings
from influence.store.codecs.bits import Bits
from influence.store.codecs.factors import Factors
from influence.store.codecs.float16 import Float16
from influence.store.codecs.int4 import Int4
from influence.store.codecs.int8 import Int8

CALIBRATED: tuple[CodecName, ...] = ("int4", "bits")
"""Those whose scale gives a row its true inner product with itself."""

CODEC_VERSION = 2
"""Of the scales of `CALIBRATED`, which a run's rows must have alike. In version 1 they made scores too small."""


def codec_for(settings: CodecSettings, modules: Sequence[ModuleColumns]) -> Codec:
    """Return the codec that settings (or a manifest) name, for rows of these modules.

    Raises:
        StoreError: A rank that is larger than the shorter side of every module's block.
    """
    columns = tuple(modules)
    if settings.rank is not None:
        return Factors(columns, settings.rank)
    kinds: dict[str, type[Codec]] = {kind.name: kind for kind in (Float16, Int8, Int4, Bits)}
    return kinds[settings.codec](columns)


def bytes_per_row(settings: CodecSettings, modules: Sequence[ModuleColumns]) -> int:
    """Return the bytes that a row takes in a shard, exactly: its codes, its scales and its norm.

    A shard's file adds one header of some hundred bytes; metadata is another file.

    Raises:
        StoreError: See `codec_for`.
    """
    return codec_for(settings, modules).row_bytes


__all__ = ["CALIBRATED", "CODEC_VERSION", "bytes_per_row", "codec_for"]
