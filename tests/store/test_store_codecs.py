"""Shards in every codec: what lies on the disk, what comes back, what damage is refused, and scores of whole stores."""

import tracemalloc
from hashlib import sha256

import numpy as np
import pytest
from safetensors.numpy import load_file

from influence.errors import DigestMismatch, StoreError
from influence.store import codec as codec_module
from influence.store import scan
from influence.store.manifest import Manifest
from influence.store.reader import Store
from tests.store.conftest import CODECS, columns_of, directions

SHAPES = ((3, 5), (2, 7), (1, 4))
EVERY = pytest.mark.parametrize("name", CODECS)


@pytest.fixture
def make_coded(make_run):
    """`make_coded("bits")`: a run of 25 random rows of 33 columns in three modules, in shards of 10, 10 and 5."""

    def make(codec: str, name: str = "run", rows: int = 25, shapes=SHAPES, rows_per_shard: int = 10):
        modules = columns_of(*shapes)
        chosen = {"codec": CODECS[codec].codec, "rank": CODECS[codec].rank}
        run = make_run(name, rows, modules[-1].stop, rows_per_shard, modules=modules, **chosen)
        few = directions(min(rows, 100), modules[-1].stop)
        run.unit[:] = few[np.arange(rows) % len(few)]
        run.unit[rows // 2] = 0
        return run

    return make


@EVERY
def test_every_row_comes_back_as_its_codec_decodes_it(make_coded, name):
    run = make_coded(name)
    store = run.write_all()
    expected = run.codec.decode(run.codec.encode(run.unit))
    for size in (1, 7, 100):
        found = list(store.blocks(size))
        np.testing.assert_array_equal(np.concatenate([unit for _, unit, _ in found]), expected)
        np.testing.assert_array_equal(np.concatenate([norms for _, _, norms in found]), run.norms)
    rows = [24, 3, 11, 3]
    np.testing.assert_array_equal(store.vectors(rows), expected[rows] * run.norms[rows, None])
    assert store.zero_rows().tolist() == [12]


@EVERY
def test_a_file_is_a_header_and_the_bytes_of_each_row(make_coded, name):
    run = make_coded(name)
    store = run.write_all()
    for span in run.manifest.shards:
        content = run.files(span.shard).vectors.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        assert header % 8 == 0
        assert len(content) == header + span.rows * store.codec.row_bytes


@EVERY
def test_the_safetensors_library_reads_the_codes_as_any_others(make_coded, name):
    run = make_coded(name)
    run.write_all()
    tensors = load_file(run.files(1).vectors)
    np.testing.assert_array_equal(tensors.pop("norms"), run.norms[10:20])
    encoded = run.codec.encode(run.unit[10:20])
    assert set(tensors) == set(encoded)
    for key, array in encoded.items():
        assert tensors[key].dtype == array.dtype
        np.testing.assert_array_equal(tensors[key], array)


def test_a_float16_shard_and_its_manifest_have_the_bytes_they_had_before_there_were_codecs(make_run):
    run = make_run()
    run.write_all()
    header = (
        b'{"norms":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"vectors":{"dtype":"F16","shape":[4,6],"data_offsets":[16,64]}}'
    )
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + run.norms[:4].tobytes() + run.unit[:4].tobytes()
    assert run.files(0).vectors.read_bytes() == expected
    assert b"rank" not in (run.folder / "manifest.json").read_bytes()


@EVERY
def test_the_same_rows_give_the_same_bytes(make_coded, name):
    first, second = make_coded(name, "first"), make_coded(name, "second")
    first.write_all()
    second.write_all()
    assert first.bytes_on_disk() == second.bytes_on_disk()


@EVERY
def test_a_flipped_byte_anywhere_in_the_codes_is_refused(make_coded, flip, name):
    run = make_coded(name)
    run.write_all()
    path = run.files(1).vectors
    for offset in range(3, path.stat().st_size, 97):
        flip(path, offset)
        with pytest.raises(DigestMismatch, match=r"shard-00001\.safetensors has sha256"):
            Store(run.folder).verify()
        with pytest.raises(DigestMismatch, match=r"shard-00001\.safetensors has sha256"):
            list(Store(run.folder).scores(directions(1, 33)))
        flip(path, offset)
    Store(run.folder).verify()


@EVERY
def test_a_truncated_file_is_refused(make_coded, name):
    run = make_coded(name)
    store = run.write_all()
    path = run.files(2).vectors
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DigestMismatch, match=r"shard-00002\.safetensors has .* truncated or replaced"):
        list(store.scores(directions(1, 33)))


@EVERY
@pytest.mark.parametrize("other", CODECS)
def test_a_shard_laid_out_by_another_codec_is_refused_though_its_digest_holds(make_coded, name, other):
    run, foreign = make_coded(name), make_coded(other, "foreign")
    store = run.write_all()
    foreign.write_all()
    content = foreign.files(1).vectors.read_bytes()
    path = run.files(1).vectors
    path.write_bytes(content)
    record = run.write(1)
    path.write_bytes(content)
    sealed = {"digests": {**record.digests, path.name: sha256(content).hexdigest()}}
    sealed["sizes"] = {**record.sizes, path.name: len(content)}
    run.files(1).record.write_bytes(record.model_copy(update=sealed).dump())
    store = Store(run.folder)
    if name == other:
        store.vectors([15])
        return
    with pytest.raises(StoreError, match=rf"isn't laid out as the norms of 10 rows .* in codec {run.codec.summary}\."):
        store.vectors([15])


@pytest.mark.parametrize(
    ("codec", "rank", "message"),
    [("bits", 2, "only factors has a rank"), ("factors", None, "needs a rank"), ("int3", None, "codec: Input should")],
)
def test_a_manifest_whose_codec_and_rank_contradict_each_other_is_refused(make_coded, codec, rank, message):
    run = make_coded("factors")
    damaged = run.manifest.model_copy(update={"codec": codec, "rank": rank})
    damaged.save(run.folder)
    with pytest.raises(StoreError, match=message):
        Manifest.load(run.folder)


def test_the_same_run_with_another_rank_can_not_be_built_into_the_same_directory(make_coded):
    run = make_coded("factors")
    run.write_all()
    with pytest.raises(StoreError, match="same fingerprint as this run and other rank"):
        run.manifest.model_copy(update={"rank": 1}).save(run.folder)


@EVERY
def test_scores_are_inner_products_with_the_gradients(make_coded, name):
    run = make_coded(name)
    store = run.write_all()
    queries = directions(3, 33, seed=5)
    gradients = store.vectors(range(25)).astype(np.float64)
    exact = queries.astype(np.float64) @ gradients.T
    lengths = np.linalg.norm(gradients, axis=1)
    scores = np.concatenate([block for _, block in store.scores(queries)], axis=1)
    assert scores.dtype == np.float32
    assert (np.abs(scores - exact) <= 2.0**-21 * lengths).all()
    cosines = np.concatenate([block for _, block in store.scores(queries, unit=True)], axis=1)
    expected = np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0)
    np.testing.assert_allclose(cosines, expected, atol=2.0**-21)
    assert not scores[:, 12].any()
    assert not cosines[:, 12].any()


@EVERY
@pytest.mark.parametrize("unit", [False, True])
def test_scores_of_any_range_in_blocks_of_any_size_are_the_same_bits(make_coded, monkeypatch, name, unit):
    run = make_coded(name)
    run.unit[[2, 14, 24]], run.norms[[2, 14, 24]] = run.unit[7], run.norms[7]
    store = run.write_all()
    queries = directions(3, 33, seed=5)
    ((_, whole),) = store.scores(queries, unit=unit)
    assert (whole[:, [2, 14, 24]] == whole[:, [7]]).all()
    for size in (1, 3, 11):
        monkeypatch.setattr(scan, "SCORED_BYTES", size * max(store.codec.row_bytes, 24))
        found = list(store.scores(queries, 4, 23, unit=unit))
        assert [first for first, _ in found] == list(range(4, 23, found[0][1].shape[1]))
        np.testing.assert_array_equal(np.concatenate([block for _, block in found], axis=1), whole[:, 4:23])


def test_a_store_of_bits_is_scored_in_the_memory_of_a_block(make_coded, monkeypatch):
    store = make_coded("bits", rows=6000, shapes=((64, 64), (64, 64)), rows_per_shard=6000).write_all()
    monkeypatch.setattr(scan, "SCORED_BYTES", 2**17)
    monkeypatch.setattr(codec_module, "TILE", 2**16)
    queries = directions(2, 8192)
    next(store.scores(queries))
    tracemalloc.start()
    for _ in store.scores(queries):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * store.codec.row_bytes / 2


def test_a_score_beyond_float32_is_infinite_and_the_others_stay(make_coded):
    run = make_coded("bits")
    run.norms[3] = 1e38
    ((_, scores),) = run.write_all().scores(directions(1, 33, seed=5) * 1000)
    assert np.isinf(scores[0, 3])
    assert np.isfinite(np.delete(scores, 3)).all()


def test_queries_of_another_width_and_rows_outside_the_store_are_refused(make_coded):
    store = make_coded("bits").write_all()
    with pytest.raises(StoreError, match=r"Queries of 33 columns are expected, found the shape \[2, 6\]"):
        next(store.scores(directions(2, 6)))
    with pytest.raises(StoreError, match="which holds rows 0 to 25"):
        next(store.scores(directions(2, 33), 0, 26))
