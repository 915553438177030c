"""A tiny run: 11 rows of 6 columns in shards of 4, 4 and 3, made of numbers that float16 keeps exactly.

And columns and rows of any shape, for codecs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from influence.axes import ModuleColumns
from influence.store.codec import Codec, CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, ShardRange, fingerprint_of
from influence.store.reader import Store
from influence.store.shard import RowMeta, ShardFiles, ShardRecord
from influence.store.writer import write_shard

PARTS = {"model": "3f2a", "projection.seed": 0, "max_tokens": 512}

CODECS = {
    "float16": CodecSettings(),
    "int8": CodecSettings(codec="int8"),
    "int4": CodecSettings(codec="int4"),
    "bits": CodecSettings(codec="bits"),
    "factors": CodecSettings(codec="factors", rank=2),
}


@dataclass(frozen=True)
class TinyRun:
    folder: Path
    manifest: Manifest
    unit: np.ndarray
    norms: np.ndarray
    meta: dict[str, list]

    @property
    def codec(self) -> Codec:
        return codec_for(self.manifest, self.manifest.modules)

    def write(self, shard: int) -> ShardRecord:
        span = self.manifest.shards[shard]
        here = slice(span.start, span.stop)
        return write_shard(
            self.folder,
            span,
            self.codec,
            self.codec.encode(self.unit[here]),
            self.norms[here].copy(),
            RowMeta(**{name: values[here] for name, values in self.meta.items()}),
            self.manifest.fingerprint,
            self.manifest.fingerprint_parts,
        )

    def write_all(self) -> Store:
        self.manifest.save(self.folder)
        for span in self.manifest.shards:
            self.write(span.shard)
        return Store(self.folder)

    def files(self, shard: int) -> ShardFiles:
        return ShardFiles(self.folder, self.manifest.shards[shard])

    def bytes_on_disk(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*.*")}


def columns_of(*shapes: tuple[int, int]) -> tuple[ModuleColumns, ...]:
    """The columns of modules with blocks of these shapes, [Q, P] each."""
    found, start = [], 0
    for number, (q, p) in enumerate(shapes):
        stop = start + q * p
        found.append(ModuleColumns(name=f"layer{number}", outputs=99, inputs=99, q=q, p=p, start=start, stop=stop))
        start = stop
    return tuple(found)


def directions(rows: int, dims: int, seed: int = 0) -> np.ndarray:
    """Random rows of length 1, float32, with heavy tails as gradients have."""
    found = np.random.default_rng(seed).standard_t(4, (rows, dims))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def manifest_of(rows: int, dims: int, rows_per_shard: int, parts: dict = PARTS, **fields) -> Manifest:
    starts = range(0, rows, rows_per_shard)
    return Manifest(
        fingerprint=fingerprint_of(parts),
        fingerprint_parts=parts,
        dims=dims,
        rows=rows,
        shards=tuple(
            ShardRange(shard=number, start=start, stop=min(rows, start + rows_per_shard))
            for number, start in enumerate(starts)
        ),
        **{"modules": columns_of((1, dims)), **fields},
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., TinyRun]:
    def make(name: str = "run", rows: int = 11, dims: int = 6, rows_per_shard: int = 4, **fields) -> TinyRun:
        unit = np.zeros((rows, dims), dtype=np.float16)
        unit[np.arange(rows), np.arange(rows) % dims] = np.where(np.arange(rows) % 2, -1, 1)
        norms = (np.arange(rows, dtype=np.float32) + 1) * 1000
        unit[rows // 2], norms[rows // 2] = 0, 0
        meta = {
            "id": [f"row-{row}" for row in range(rows)],
            "source": [None if row % 3 else "book" for row in range(rows)],
            "uri": [f"file.txt#L{row}" for row in range(rows)],
            "label": [None if row % 2 else row for row in range(rows)],
            "tokens": np.arange(rows, dtype=np.int32) + 2,
            "loss": np.arange(rows, dtype=np.float32) / 4,
            "text": [f"text of row {row} – né" for row in range(rows)],
        }
        return TinyRun(tmp_path / name, manifest_of(rows, dims, rows_per_shard, **fields), unit, norms, meta)

    return make


@pytest.fixture
def run(make_run) -> TinyRun:
    return make_run()


@pytest.fixture
def flip() -> Callable[[Path, int], None]:
    def flip_byte(path: Path, offset: int) -> None:
        content = bytearray(path.read_bytes())
        content[offset] ^= 0x10
        path.write_bytes(content)

    return flip_byte
