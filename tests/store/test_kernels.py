"""Compiled kernels against the codes read one coordinate at a time, and what an inner product may not depend on."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for, kernels
from influence.store.codecs.pieces import BITS, FLOAT16, INT4, INT8, PIECE, Pieces, Stretch
from influence.store.products import MANY
from tests.reference.codes import decoded
from tests.store.conftest import columns_of, directions

NAMES = ["float16", "int8", "int4", "bits"]
EVERY = pytest.mark.parametrize("name", NAMES)
BYTES_PER_CODE = {FLOAT16: 2, INT8: 1, INT4: 1 / 2, BITS: 1 / 8}


def codec_of(name, *widths):
    return codec_for(CodecSettings(codec=name), columns_of(*[(1, width) for width in widths]))


def any_codes(codec, rows, seed=0):
    """Codes of every value, whatever direction they might stand for, and scales from 2⁻¹²⁰ to 2¹⁰."""
    rng = np.random.default_rng(seed)
    found = codec.zeros(rows)
    for name, array in found.items():
        if name == "scales":
            array[:] = np.ldexp(1 + rng.random(array.shape), rng.integers(-120, 10, array.shape))
        else:
            array.view(np.uint8)[:] = rng.integers(0, 256, array.view(np.uint8).shape)
    if codec.name == "float16":
        halves = found["vectors"].view(np.uint16)
        # What isn't finite is made subnormal.
        halves[:] = np.where(halves & 0x7C00 == 0x7C00, halves & 0x83FF, halves)
    return found


def read_slowly(codec, encoded):
    rows = len(next(iter(encoded.values())))
    one_by_one = ({key: array[row].tobytes() for key, array in encoded.items()} for row in range(rows))
    return np.array([decoded(codec.name, row, codec.modules) for row in one_by_one], dtype=np.float64)


@EVERY
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65]), min_size=1, max_size=4),
    st.integers(1, 17),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
@example([PIECE + 1, 5], 2, 2, 0)
@example([2 * PIECE + 33], 9, 1, 0)
def test_kernels_give_what_the_codes_say_coordinate_by_coordinate(name, widths, rows, count, seed):
    codec = codec_of(name, *widths)
    encoded = any_codes(codec, rows, seed)
    slow = read_slowly(codec, encoded)
    np.testing.assert_array_equal(codec.decode(encoded), slow.astype(np.float32))
    queries = np.random.default_rng(seed).standard_normal((count, codec.dims)).astype(np.float32)
    true, largest = queries.astype(np.float64) @ slow.T, np.abs(queries).astype(np.float64) @ np.abs(slow).T
    assert (np.abs(codec.scores(encoded, queries) - true) <= 2.0**-20 * largest + 1e-44).all()


def test_every_half_is_read_exactly():
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    finite = halves[halves & 0x7C00 != 0x7C00].view(np.float16)[None]
    codec = codec_of("float16", finite.shape[1])
    np.testing.assert_array_equal(codec.decode({"vectors": finite}), finite.astype(np.float32))


@EVERY
@pytest.mark.parametrize("count", [1, 6, MANY])
def test_a_row_scores_alike_at_any_address_beside_any_rows_and_queries_and_in_any_thread(name, count):
    codec = codec_of(name, 63, 129, 7)
    encoded = codec.encode(directions(37, codec.dims))
    queries = directions(count, codec.dims, seed=1)
    score = codec.scorer(queries)
    found = score(encoded)
    np.testing.assert_array_equal(codec.scorer(queries[-1:], many=count >= MANY)(encoded), found[-1:])
    with ThreadPoolExecutor(3) as pool:
        blocks = [(start, stop) for start in range(0, 37, 5) for stop in (start + 1, start + 3, 37)]
        shifted = list(pool.map(lambda cut: score(moved(encoded, *cut)), blocks))
    for (start, stop), part in zip(blocks, shifted, strict=True):
        np.testing.assert_array_equal(part, found[:, start:stop])


def moved(encoded, start, stop):
    """The same codes at an address that no vector is aligned to, and that holds other bytes all around."""
    found = {}
    for name, array in encoded.items():
        part = array[start:stop]
        held = np.full(part.nbytes + 64, 0xAA, dtype=np.uint8)
        # No number of several bytes lies across its own kind's boundary, as nowhere in numpy's own arrays.
        place = -held.ctypes.data % 64 + (1 + start % 3) * array.itemsize
        held[place : place + part.nbytes] = part.reshape(-1).view(np.uint8)
        found[name] = held[place : place + part.nbytes].view(array.dtype).reshape(part.shape)
    return found


@pytest.mark.parametrize("kind", [FLOAT16, INT8, INT4, BITS])
@pytest.mark.parametrize("width", [1, 16, 33, PIECE, PIECE + 1, 3 * PIECE - 7])
def test_pieces_hold_every_column_once_and_every_byte(kind, width):
    first, size = (math.ceil(columns * BYTES_PER_CODE[kind]) for columns in (3, width))
    pieces = Pieces(
        kind, [Stretch(slice(0, 3), slice(0, first)), Stretch(slice(3, 3 + width), slice(first, first + size))]
    )
    edges = pieces.table[:, :2]
    assert edges[0, 0] == 0
    assert edges[-1, 1] == first + size
    assert (edges[1:, 0] == edges[:-1, 1]).all()
    columns = np.concatenate([[*range(at, at + n)] for line in pieces.table for at, n in (line[5:7], line[7:9])])
    assert sorted(columns) == [*range(3 + width)]
    laid = pieces.laid_out(np.arange(1, 4 + width, dtype=np.float32)[None], 4)
    assert laid.shape[0] == 4
    assert sorted(laid[0][laid[0] > 0]) == [*range(1, 4 + width)]
    assert not laid[1:].any()


def test_a_process_finds_what_another_compiled(tmp_path):
    program = (
        "import numpy as np\n"
        "from influence.store.codecs import kernels\n"
        "kernel, out = kernels.unpacked(1), np.zeros((1, 3), np.float32)\n"
        "piece = np.array([[0, 3, 0, 0, 0, 0, 3, 0, 0]])\n"
        "kernel(np.array([[1, 255, 2]], np.uint8), np.full((1, 1), 2, np.float32), piece, 0, out)\n"
        "print(*out[0], sum(kernel.stats.cache_hits.values()))\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            cwd=Path(kernels.__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert told == [["2.0", "-2.0", "4.0", "0"], ["2.0", "-2.0", "4.0", "1"]]


def test_without_a_folder_for_kernels_they_are_compiled_and_the_log_says_what_that_costs(monkeypatch, caplog):
    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    kernel = kernels.unpacked.__wrapped__(INT8)
    assert "set NUMBA_CACHE_DIR" in caplog.text
    out = np.zeros((1, 3), np.float32)
    piece = np.array([[0, 3, 0, 0, 0, 0, 3, 0, 0]])
    kernel(np.array([[1, 255, 2]], np.uint8), np.full((1, 1), 2, np.float32), piece, 0, out)
    assert out.tolist() == [[2, -2, 4]]
