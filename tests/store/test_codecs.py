"""Every codec: what comes back, how far off it may be, and scores that never unpack a row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from influence.config import parse_config
from influence.errors import ConfigError, StoreError
from influence.store import codec as codec_module
from influence.store.codec import CodecSettings
from influence.store.codecs import bytes_per_row, codec_for
from influence.store.manifest import StoreSettings
from tests.reference.codes import decoded
from tests.store.conftest import CODECS, columns_of, directions

RAGGED = columns_of((4, 4), (3, 5), (1, 1), (7, 9), (1, 17))
EVERY = pytest.mark.parametrize("name", CODECS)
MANY = settings(max_examples=60, deadline=None)


@st.composite
def rows_of_modules(draw):
    """Modules with blocks of any shape up to 7 × 7, and a few directions over them, float32."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4))
    modules = columns_of(*shapes)
    entries = st.floats(-1, 1, width=32) | st.just(0.0) | st.floats(-(2.0**-20), 2.0**-20, width=32)
    rows = draw(arrays.arrays(np.float32, (draw(st.integers(1, 5)), modules[-1].stop), elements=entries))
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return modules, np.divide(rows, lengths, out=np.zeros(rows.shape), where=lengths > 0).astype(np.float32)


def blocks(modules, rows):
    """Each module's part of the rows, float64 [n, w]."""
    return [rows[:, module.start : module.stop].astype(np.float64) for module in modules]


def there_and_back(codec, rows):
    return codec.decode(codec.encode(rows))


@MANY
@given(rows_of_modules())
def test_float16_keeps_eleven_bits_of_every_entry(given_rows):
    modules, rows = given_rows
    back = there_and_back(codec_for(CODECS["float16"], modules), rows)
    assert (np.abs(back - rows) <= np.abs(rows) / 2**11 + 2.0**-25).all()


@MANY
@given(rows_of_modules())
def test_int8_is_off_by_a_254th_of_its_blocks_largest_entry_at_most(given_rows):
    modules, rows = given_rows
    back = there_and_back(codec_for(CODECS["int8"], modules), rows)
    for true, found in zip(blocks(modules, rows), blocks(modules, back), strict=True):
        assert (np.abs(found - true) <= np.abs(true).max(axis=1, keepdims=True) / 254 * 1.0001 + 1e-43).all()


@MANY
@given(rows_of_modules())
def test_int4_is_never_worse_than_fifteen_even_levels_up_to_the_largest_entry(given_rows):
    modules, rows = given_rows
    back = there_and_back(codec_for(CODECS["int4"], modules), rows)
    for true, found in zip(blocks(modules, rows), blocks(modules, back), strict=True):
        step = np.abs(true).max(axis=1, keepdims=True) / 7
        even = np.rint(np.divide(true, step, out=np.zeros_like(true), where=step > 0)) * step
        worst = ((even - true) ** 2).sum(axis=1)
        # The scale is calibrated, which costs a little of the error; directions are compared.
        along, squares = (found * true).sum(axis=1), (found**2).sum(axis=1)
        least = np.divide(along, squares, out=np.zeros_like(along), where=squares > 0)[:, None]
        # A scale below 1e-38 is as coarse as float32 is there.
        error = ((least * found - true) ** 2).sum(axis=1)
        assert (error <= worst * 1.0001 + 1e-12 * (true**2).sum(axis=1) + 1e-83).all()


@MANY
@given(rows_of_modules())
def test_bits_are_the_signs_at_the_square_over_the_sum_of_magnitudes(given_rows):
    modules, rows = given_rows
    back = there_and_back(codec_for(CODECS["bits"], modules), rows)
    for true, found in zip(blocks(modules, rows), blocks(modules, back), strict=True):
        squares, sums = (true**2).sum(axis=1, keepdims=True), np.abs(true).sum(axis=1, keepdims=True)
        scale = np.divide(squares, sums, out=np.zeros_like(sums), where=squares > 1e-60)
        np.testing.assert_allclose(found, np.where(true < 0, -1, 1) * scale, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", ["float16", "int8", "int4", "bits"])
@pytest.mark.parametrize("tails", ["normal", "products", "one large entry"])
def test_a_block_has_its_true_inner_product_with_itself_whatever_its_tails(name, tails):
    modules, generator = columns_of((32, 32), (48, 16)), np.random.default_rng(0)
    rows = generator.standard_normal((50, modules[-1].stop))
    if tails == "products":
        # A row of one token: its block is the outer product of two vectors.
        rows = np.concatenate(
            [
                np.einsum("nq,np->nqp", *(generator.standard_normal((50, side)) for side in (m.q, m.p))).reshape(50, -1)
                for m in modules
            ],
            axis=1,
        )
    elif tails == "one large entry":
        rows[:, 7] *= 100
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    back = there_and_back(codec_for(CODECS[name], modules), rows)
    for true, found in zip(blocks(modules, rows), blocks(modules, back), strict=True):
        share = (true.astype(np.float64) * found).sum(axis=1) / (true.astype(np.float64) ** 2).sum(axis=1)
        np.testing.assert_allclose(share, 1, rtol=1e-5 if name in ("int4", "bits") else 2e-2)


def test_bits_of_normal_rows_give_the_inner_products_on_average():
    modules = columns_of((64, 64), (64, 64))
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((400, modules[-1].stop))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    queries = rows + 0.01 * generator.standard_normal(rows.shape)
    back = there_and_back(codec_for(CODECS["bits"], modules), rows)
    assert (back * queries).sum() / (rows * queries).sum() == pytest.approx(1, abs=0.01)


@MANY
@given(rows_of_modules(), st.integers(1, 7))
def test_factors_are_off_by_the_singular_values_left_out(given_rows, rank):
    modules, rows = given_rows
    rank = min(rank, max(min(module.q, module.p) for module in modules))
    back = there_and_back(codec_for(CodecSettings(codec="factors", rank=rank), modules), rows)
    for module, true, found in zip(modules, blocks(modules, rows), blocks(modules, back), strict=True):
        values = np.linalg.svd(true.reshape(-1, module.q, module.p), compute_uv=False)
        left_out = np.sqrt((values[:, rank:] ** 2).sum(axis=1))
        length = np.sqrt((values**2).sum(axis=1))
        assert (np.linalg.norm(found - true, axis=1) <= left_out + length / 2**9 + 1e-7).all()


def test_factors_of_a_wide_block_without_structure_are_within_a_thousandth_of_the_best():
    modules = columns_of((64, 48), (48, 64))
    rows = np.random.default_rng(0).standard_normal((4, modules[-1].stop))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    back = there_and_back(codec_for(CODECS["factors"], modules), rows)
    for module, true, found in zip(modules, blocks(modules, rows), blocks(modules, back), strict=True):
        values = np.linalg.svd(true.reshape(-1, module.q, module.p), compute_uv=False) ** 2
        error = ((found - true) ** 2).sum(axis=1)
        assert (error <= values[:, 2:].sum(axis=1) + 1e-3 * values.sum(axis=1)).all()


def test_int4_loses_less_of_a_heavy_tailed_block_than_levels_up_to_its_largest_entry():
    rows = directions(20, 1024)
    back = there_and_back(codec_for(CODECS["int4"], columns_of((32, 32))), rows)
    step = np.abs(rows).max(axis=1, keepdims=True) / 7
    assert np.linalg.norm(back - rows) < 0.8 * np.linalg.norm(np.rint(rows / step) * step - rows)


@EVERY
@MANY
@given(rows_of_modules())
def test_every_code_reads_as_the_layout_says_coordinate_by_coordinate(name, given_rows):
    modules, rows = given_rows
    rank = min(2, max(min(module.q, module.p) for module in modules))
    codec = codec_for(CodecSettings(codec=name, rank=rank if name == "factors" else None), modules)
    encoded = codec.encode(rows)
    slow = [
        decoded(name, {key: array[row].tobytes() for key, array in encoded.items()}, modules, rank)
        for row in range(len(rows))
    ]
    np.testing.assert_allclose(codec.decode(encoded), slow, rtol=1e-6, atol=1e-9)


@EVERY
@MANY
@given(rows_of_modules(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_the_decoded_rows_in_float64_to_float32s_rounding(name, given_rows, count, seed):
    modules, rows = given_rows
    rank = 1 if name == "factors" else None
    codec = codec_for(CodecSettings(codec=name, rank=rank), modules)
    encoded = codec.encode(rows)
    queries = np.random.default_rng(seed).standard_normal((count, codec.dims)).astype(np.float32)
    back = codec.decode(encoded).astype(np.float64)
    found = codec.scores(encoded, queries)
    assert (found.dtype, found.shape) == (np.float32, (count, len(rows)))
    largest = np.abs(queries).astype(np.float64) @ np.abs(back).T
    assert (np.abs(found - queries.astype(np.float64) @ back.T) <= 2.0**-21 * largest + 1e-44).all()
    np.testing.assert_allclose(codec.lengths(encoded), np.linalg.norm(back, axis=1), rtol=1e-6, atol=1e-22)


@EVERY
def test_wide_rows_score_as_decoded_beyond_one_piece_and_one_tile(name, monkeypatch):
    monkeypatch.setattr(codec_module, "TILE", 5000)
    codec = codec_for(CODECS[name], columns_of((100, 90), (3, 5), (64, 64)))
    encoded = codec.encode(directions(6, codec.dims))
    queries = directions(2, codec.dims, seed=1)
    exact = queries.astype(np.float64) @ codec.decode(encoded).astype(np.float64).T
    np.testing.assert_allclose(codec.scores(encoded, queries), exact, atol=2.0**-22)


@EVERY
def test_a_row_has_the_same_codes_and_scores_wherever_it_stands_and_whatever_stands_beside_it(name, monkeypatch):
    codec = codec_for(CODECS[name], columns_of((9, 5), (16, 33), (1, 7)))
    rows, queries = directions(40, codec.dims), directions(5, codec.dims, seed=1)
    rows[[3, 17, 18, 39]] = rows[8]
    encoded = codec.encode(rows)
    scores, lengths = codec.scores(encoded, queries), codec.lengths(encoded)
    assert (scores[:, [3, 17, 18, 39]] == scores[:, [8]]).all()
    monkeypatch.setattr(codec_module, "TILE", 1000)
    for start, stop in ((0, 1), (3, 4), (5, 12), (17, 40)):
        alone = codec.encode(rows[start:stop])
        for key, array in encoded.items():
            np.testing.assert_array_equal(alone[key], array[start:stop])
        np.testing.assert_array_equal(codec.scores(alone, queries), scores[:, start:stop])
        np.testing.assert_array_equal(codec.scores(alone, queries[2:3]), scores[2:3, start:stop])
        np.testing.assert_array_equal(codec.lengths(alone), lengths[start:stop])


@EVERY
def test_zero_rows_stay_zero_and_score_zero(name):
    codec = codec_for(CODECS[name], RAGGED)
    rows = directions(5, codec.dims)
    rows[[1, 4]] = 0
    rows[4] *= -1
    rows[2, RAGGED[3].start : RAGGED[3].stop] = 0
    encoded = codec.encode(rows)
    assert not codec.decode(encoded)[[1, 4]].any()
    assert not codec.decode(encoded)[2, RAGGED[3].start : RAGGED[3].stop].any()
    assert not codec.scores(encoded, directions(3, codec.dims, seed=1))[:, [1, 4]].any()
    assert (codec.lengths(encoded)[[1, 4]] == 0).all()
    for key, array in codec.zeros(2).items():
        np.testing.assert_array_equal(encoded[key][[1, 4]], array)


@EVERY
def test_nothing_a_direction_holds_overflows_or_vanishes_into_nan(name):
    codec = codec_for(CODECS[name], RAGGED)
    rows = np.zeros((6, codec.dims), dtype=np.float32)
    rows[0, 0] = 1.0005
    rows[1] = 1
    rows[2, 5] = -1
    rows[3] = np.finfo(np.float32).smallest_subnormal
    rows[4] = 1e-30
    rows[5, ::2], rows[5, 1::2] = 1, 1e-38
    back = there_and_back(codec, rows)
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back[1], 1, rtol=1e-3)
    np.testing.assert_allclose(back[2, 5], -1, rtol=1e-3)


@EVERY
def test_float16_and_float64_directions_are_taken_too(name):
    codec = codec_for(CODECS[name], RAGGED)
    halves = directions(4, codec.dims).astype(np.float16)
    for kind in (np.float32, np.float64):
        for key, array in codec.encode(halves).items():
            np.testing.assert_array_equal(array, codec.encode(halves.astype(kind))[key])


@EVERY
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 entries that are NaN or infinite"),
        (-np.inf, "1 entries that are NaN or infinite"),
        (-3.0, "entries up to 3"),
    ],
)
def test_what_is_no_direction_is_refused_by_its_place(name, kind, value, message):
    codec = codec_for(CODECS[name], RAGGED)
    rows = directions(9, codec.dims).astype(kind)
    rows[7, 3] = value
    with pytest.raises(StoreError, match=rf"Vector 7 \(counted from 0\) holds {message}"):
        codec.encode(rows)


@EVERY
def test_rows_and_queries_of_another_width_are_refused_with_both_widths(name):
    codec = codec_for(CODECS[name], RAGGED)
    with pytest.raises(StoreError, match=rf"Codec {name} takes directions \[n, 112\] .* found float32 \[2, 111\]"):
        codec.encode(directions(2, 111))
    with pytest.raises(StoreError, match=r"Queries of 112 columns are expected, found the shape \[3, 5\]"):
        codec.scores(codec.zeros(2), directions(3, 5))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("float16", 4 + 2 * 112),
        ("int8", 4 + 4 * 5 + 112),
        ("int4", 4 + 4 * 5 + 8 + 8 + 1 + 32 + 9),
        ("bits", 4 + 4 * 5 + 2 + 2 + 1 + 8 + 3),
        ("factors", 4 + 2 * (2 * 8 + 2 * 8 + 2 + 2 * 16 + 18)),
    ],
)
def test_the_bytes_of_a_row_are_its_norm_its_scales_and_its_codes(name, size):
    assert bytes_per_row(CODECS[name], RAGGED) == size
    encoded = codec_for(CODECS[name], RAGGED).encode(directions(7, 112))
    assert sum(array.nbytes for array in encoded.values()) == 7 * (size - 4)


def test_a_row_of_86016_columns_takes_10752_bytes_of_bits_and_a_scale_a_module():
    modules = columns_of(*[(64, 64)] * 21)
    assert bytes_per_row(CODECS["bits"], modules) == 10_752 + 21 * 4 + 4
    assert bytes_per_row(CODECS["int4"], modules) == 43_008 + 21 * 4 + 4
    assert bytes_per_row(CODECS["factors"], modules) == 21 * 2 * 2 * 128 + 4


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"codec": "bits", "rank": 2}, "rank 2 is given and codec is bits; only factors has a rank"),
        ({"rank": 2}, "rank 2 is given and codec is bits; only factors has a rank"),
        ({"codec": "factors"}, "codec factors needs a rank"),
        ({"codec": "factors", "rank": 0}, "rank: .*greater than or equal to 1"),
        ({"codec": "int2"}, "codec: .*'float16', 'int8', 'int4', 'bits' or 'factors'"),
    ],
)
def test_a_rank_belongs_to_factors_and_the_message_says_so(given_settings, message):
    with pytest.raises(ConfigError, match=rf"(?s)store.*{message}"):
        parse_config({"model": {"path": "m"}, "data": {"path": "d.jsonl"}, "store": given_settings})
    with pytest.raises(ValidationError):
        StoreSettings(**given_settings)


def test_a_rank_that_no_block_reaches_is_refused_with_the_largest_that_one_does():
    with pytest.raises(StoreError, match=r"store\.rank is 8, .* has rank 7 at most: choose 1 to 7, or another codec"):
        codec_for(CodecSettings(codec="factors", rank=8), RAGGED)
    with pytest.raises(StoreError, match=r"store\.rank is 8"):
        bytes_per_row(CodecSettings(codec="factors", rank=8), RAGGED)


def test_a_rank_beyond_a_small_blocks_shorter_side_keeps_all_of_that_block():
    codec = codec_for(CodecSettings(codec="factors", rank=5), RAGGED)
    rows = directions(3, codec.dims)
    small = slice(0, RAGGED[3].start)
    np.testing.assert_allclose(there_and_back(codec, rows)[:, small], rows[:, small], atol=2.0**-11)


def test_settings_without_a_rank_are_written_without_one():
    assert StoreSettings(codec="bits").model_dump() == {"codec": "bits", "rows_per_shard": None}
    assert StoreSettings(codec="factors", rank=3).model_dump()["rank"] == 3
