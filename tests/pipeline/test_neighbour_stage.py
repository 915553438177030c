"""Near rows: those of a float64 look at all pairs, whoever computes them and however often they are killed."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from influence.artifacts.lock import lock_folder
from influence.engine import dispatch
from influence.errors import DigestMismatch, QueryError, RunLocked, StoreError
from influence.neighbors import cells as neighbour_cells
from influence.neighbors import plan as neighbour_plan
from influence.neighbors import stage as neighbour_stage
from influence.neighbors.files import NAMES, read_near
from influence.neighbors.nearest import NOBODY, Nearest
from influence.neighbors.plan import plan_graph
from influence.neighbors.stage import build_graph
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, ShardRange, fingerprint_of
from influence.store.reader import Store
from influence.store.shard import RowMeta
from influence.store.writer import write_shard
from tests.store.conftest import columns_of


@pytest.fixture
def stored(tmp_path):
    """`stored(vectors, codec, name)`: a store of some gradients, in shards of 16 rows."""

    def make(vectors, codec="float16", name="run"):
        rows, dims = vectors.shape
        chosen, modules = CodecSettings(codec=codec), columns_of((dims // 4, 4))
        parts = {"test": "neighbours", "rows": rows, "dims": dims, "codec": codec, "of": float(np.abs(vectors).sum())}
        spans = tuple(
            ShardRange(shard=n, start=start, stop=min(rows, start + 16)) for n, start in enumerate(range(0, rows, 16))
        )
        manifest = Manifest(
            fingerprint=fingerprint_of(parts), fingerprint_parts=parts, modules=modules, dims=dims, rows=rows,
            shards=spans, **chosen.model_dump(),
        )  # fmt: skip
        folder = tmp_path / name
        manifest.save(folder)
        norms = np.linalg.norm(vectors, axis=1).astype(np.float32)
        unit = np.divide(vectors, norms[:, None], out=np.zeros_like(vectors), where=norms[:, None] > 0)
        kept = codec_for(chosen, modules)
        for span in spans:
            inside, nothing = slice(span.start, span.stop), [None] * span.rows
            meta = RowMeta(
                id=[f"row-{row}" for row in range(span.start, span.stop)], source=nothing, uri=nothing, label=nothing,
                tokens=np.ones(span.rows, np.int32), loss=np.ones(span.rows, np.float32), text=["text"] * span.rows,
            )  # fmt: skip
            write_shard(folder, span, kept, kept.encode(unit[inside]), norms[inside].copy(), meta, manifest.fingerprint)
        return Store(folder)

    return make


def clustered(rows, dims=16, seed=0):
    """Rows in clusters, of any length; rows 5 and 30 and 31 are copies of row 3, rows 7 and 40 are zero."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, rows // 12), dims))
    found = centres[random.integers(0, len(centres), rows)] + 0.4 * random.standard_normal((rows, dims))
    found *= np.exp(random.standard_normal((rows, 1)))
    for copy in (5, 30, 31):
        if copy < rows:
            found[copy] = found[3]
    found[[row for row in (7, 40) if row < rows]] = 0
    return found.astype(np.float32)


def by_hand(store, k):
    """All pairs of decoded rows in float64: what is nearest, ties by lower row."""
    vectors = store.vectors(np.arange(store.rows)).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    alive = np.flatnonzero(lengths > 0)
    found = {name: np.full((store.rows, k), 0.0 if "_" in name else NOBODY) for name in NAMES}
    for row in alive:
        cosines = {other: vectors[row] @ vectors[other] / lengths[row] / lengths[other] for other in alive}
        del cosines[row]
        for name, sign in (("alike", -1), ("opposed", 1)):
            best = sorted(cosines, key=lambda other, s=sign, c=cosines: (s * round(c[other], 7), other))[:k]
            found[name][row, : len(best)] = best
            found[f"{name}_cosines"][row, : len(best)] = [cosines[other] for other in best]
    return found


def graph(config, store, k=10, compared=None, report=None):
    plan = plan_graph(store, k, compared)
    build_graph(config, store, plan, report)
    return plan


def everything(plan):
    return read_near(plan, np.arange(plan.rows))


@pytest.mark.parametrize("codec", ["float16", "int8", "bits"])
@pytest.mark.parametrize("rows", [57, 200])
def test_exact_neighbours_are_those_of_a_float64_look_at_all_pairs(configured, stored, monkeypatch, codec, rows):
    monkeypatch.setattr(neighbour_plan, "batch_of", lambda dims: 24)
    store = stored(clustered(rows, 32), codec)
    found, expected = everything(graph(configured(), store, k=6)), by_hand(store, 6)
    for end in ("alike", "opposed"):
        np.testing.assert_allclose(found[f"{end}_cosines"], expected[f"{end}_cosines"], atol=2e-6)
        # Few coordinates of one bit tie often, and float64 breaks such ties by its own last digit.
        if codec != "bits":
            np.testing.assert_array_equal(found[end], expected[end])
    assert found["alike"].dtype == np.int64
    assert found["alike_cosines"].dtype == np.float32


def test_copies_find_one_another_and_never_themselves_and_ties_go_to_the_lower_row(configured, stored):
    found = everything(graph(configured(), stored(clustered(64)), k=5))
    assert found["alike"][3, :3].tolist() == [5, 30, 31]
    assert found["alike"][5, :3].tolist() == [3, 30, 31]
    assert found["alike"][31, :3].tolist() == [3, 5, 30]
    np.testing.assert_allclose(found["alike_cosines"][[3, 5, 30, 31], :3], 1, atol=1e-6)
    same = np.ones((40, 16), np.float32)
    found = everything(graph(configured(), stored(same, name="same"), k=3))
    assert found["alike"][[0, 1, 2, 39]].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert found["opposed"][39].tolist() == [0, 1, 2]


@pytest.mark.parametrize("compared", [None, 20])
def test_zero_rows_have_no_neighbours_and_are_nobodys(configured, stored, compared):
    found = everything(graph(configured(), stored(clustered(64)), k=5, compared=compared))
    for end in ("alike", "opposed"):
        assert (found[end][[7, 40]] == NOBODY).all()
        assert (found[f"{end}_cosines"][[7, 40]] == 0).all()
        assert not np.isin(found[end][found[end] != NOBODY], [7, 40]).any()
        assert not (found[end] == np.arange(64)[:, None]).any()


@pytest.mark.parametrize("compared", [None, 10])
@pytest.mark.parametrize(("rows", "k"), [(1, 10), (2, 10), (9, 8), (9, 50)])
def test_more_neighbours_than_rows_are_all_the_others(configured, stored, rows, k, compared):
    plan = graph(configured(), stored(clustered(rows)), k=k, compared=compared)
    found = everything(plan)
    assert found["alike"].shape == (rows, rows - 1)
    alive = [row for row in range(rows) if row != 7]
    for row in alive:
        others = sorted(other for other in alive if other != row)
        assert sorted(other for other in found["opposed"][row] if other != NOBODY) == others


def test_only_zero_rows_are_a_graph_without_edges(configured, stored):
    for compared in (None, 10):
        found = everything(graph(configured(), stored(np.zeros((20, 16), np.float32)), k=3, compared=compared))
        assert (found["alike"] == NOBODY).all()
        assert (found["opposed"] == NOBODY).all()


def test_cells_of_which_each_row_reads_all_find_what_all_pairs_give(configured, stored, monkeypatch):
    monkeypatch.setattr(neighbour_plan, "CELL_ROWS", 9)
    monkeypatch.setattr(neighbour_plan, "ASKED_ROWS", 37)
    monkeypatch.setattr(neighbour_plan, "ORDERED_ROWS", 50)
    monkeypatch.setattr(neighbour_plan, "CODE_BYTES", 1000)
    monkeypatch.setattr(neighbour_cells, "HOME_ROWS", 64)
    store = stored(clustered(200, 32))
    plan = graph(configured(), store, k=6, compared=1000)
    assert plan.cells == 22
    exact, found = everything(graph(configured(), store, k=6)), everything(plan)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], exact[name])
    assert plan.recalls == (1.0, 1.0)


def test_the_measured_recall_is_the_share_of_true_neighbours_that_cells_found(configured, stored, monkeypatch):
    monkeypatch.setattr(neighbour_plan, "CELL_ROWS", 9)
    store = stored(clustered(240, 32, seed=3))
    plan = graph(configured(), store, k=6, compared=60)
    found, expected = everything(plan), by_hand(store, 6)
    for end, recall in zip(("alike", "opposed"), plan.recalls, strict=True):
        pairs = list(zip(found[end], expected[end], strict=True))
        shares = sum(len(set(mine) & set(true) - {NOBODY}) for mine, true in pairs)
        assert recall == pytest.approx(shares / (expected[end] != NOBODY).sum(), abs=1e-9)
        assert recall > 60 / 240
    assert plan.recalls[0] > 0.8
    assert (found["alike_cosines"][:, :-1] >= found["alike_cosines"][:, 1:])[found["alike"][:, -1] >= 0].all()


def test_a_crowd_of_copies_is_not_compared_with_the_whole_crowd(configured, stored, monkeypatch):
    monkeypatch.setattr(neighbour_plan, "CELL_ROWS", 10)
    vectors = np.concatenate([np.ones((300, 16), np.float32), clustered(100)])
    plan, compared = plan_graph(stored(vectors), 3, 40), []
    offer = Nearest.offer

    def counted(self, scores, rows, queries=None, barred=None):
        compared.append(scores.size)
        offer(self, scores, rows, queries, barred)

    monkeypatch.setattr(Nearest, "offer", counted)
    build_graph(configured(), plan.store, plan)
    measured = plan.measured * 400
    assert sum(compared) - measured < 400 * (40 + 2 * neighbour_cells.LARGEST * 10)
    found = everything(plan)
    np.testing.assert_allclose(found["alike_cosines"][:300], 1, atol=1e-6)
    assert plan.recalls[0] > 0.5


@contextmanager
def dying_after(monkeypatch, count):
    """Let saving fail once it was done so many times."""
    save, done, one = neighbour_plan_save, [], threading.Lock()

    def dying(path, found, plan):
        with one:
            if len(done) >= count:
                raise StoreError("the power is cut")
            save(path, found, plan)
            done.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(neighbour_stage, "save_near", dying)
        patch.setattr(neighbour_cells, "save_near", dying)
        yield done


neighbour_plan_save = neighbour_stage.save_near
both_slots = threading.Barrier(2)


def meet() -> None:
    both_slots.wait(60)


def let_finish(client) -> None:
    """Wait until the worker's two slots are free: what an attempt that failed had begun is over."""
    client.gather([client.submit(meet, pure=False) for _ in range(2)])


@pytest.mark.parametrize("compared", [None, 60])
def test_a_graph_that_is_killed_again_and_again_goes_on_to_the_same_bytes(
    configured, stored, monkeypatch, thread_client, compared
):
    @contextmanager
    def connect(*_):
        yield thread_client

    monkeypatch.setattr(neighbour_plan, "CELL_ROWS", 9)
    monkeypatch.setattr(neighbour_plan, "ASKED_ROWS", 30)
    monkeypatch.setattr(neighbour_plan, "ORDERED_ROWS", 40)
    monkeypatch.setattr(neighbour_plan, "batch_of", lambda dims: 24)
    whole = graph(configured(), stored(clustered(150), name="whole"), compared=compared)
    monkeypatch.setattr(dispatch, "WORTH", 0)
    monkeypatch.setattr(dispatch, "connect", connect)
    store = stored(clustered(150), name="killed")
    for count in (0, 1, 2):
        with dying_after(monkeypatch, count):
            with pytest.raises(StoreError, match="the power is cut"):
                graph(configured(), store, compared=compared)
            let_finish(thread_client)
    steps = []
    plan = graph(configured(), store, compared=compared, report=steps.append)
    assert steps[-1].done == steps[-1].total
    # What stood is counted, not computed again.
    with dying_after(monkeypatch, 0):
        graph(configured(), store, compared=compared)
    files = {path.name: path.read_bytes() for path in whole.folder.glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in plan.folder.glob("*.safetensors")} == files
    assert all(name.startswith(("near", "zero", "about")) for name in files)


def test_other_settings_make_another_graph_beside_the_first(configured, stored):
    store = stored(clustered(64))
    first, second = graph(configured(), store, k=3), graph(configured(), store, k=4)
    assert first.folder != second.folder
    assert first.stands
    assert everything(first)["alike"].shape == (64, 3)


def test_a_graph_is_made_by_one_process_at_a_time(configured, stored):
    plan = plan_graph(stored(clustered(64)), 3, None)
    with lock_folder(plan.folder), pytest.raises(RunLocked):
        build_graph(configured(), plan.store, plan)


def test_a_changed_byte_of_a_block_is_named_when_it_is_read(configured, stored):
    plan = graph(configured(), stored(clustered(64)), k=3)
    path = plan.block_file(0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestMismatch, match=r"near-000000\.safetensors"):
        everything(plan)


def test_an_approximate_graph_of_a_run_in_a_bucket_is_refused_with_what_works(configured, stored, monkeypatch):
    plan = plan_graph(stored(clustered(64)), 3, 20)
    monkeypatch.setattr(neighbour_stage, "is_remote", lambda path: True)
    with pytest.raises(QueryError, match=r"in a bucket.*neighbours\.kind=exact"):
        build_graph(configured(), plan.store, plan)


def test_shortlists_are_the_ends_of_a_sorted_matrix_in_whatever_pieces_it_comes():
    random = np.random.default_rng(0)
    scores = random.integers(-9, 9, (7, 90)).astype(np.float32)
    found = Nearest(7, 5)
    for columns in np.array_split(random.permutation(90), 8):
        columns = np.sort(columns)
        lines = np.sort(random.choice(7, 3, replace=False))
        for part in (lines, np.setdiff1d(np.arange(7), lines)):
            found.offer(scores[np.ix_(part, columns)], columns, part)
    for line in range(7):
        order = sorted(range(90), key=lambda row, line=line: (-scores[line, row], row))[:5]
        assert found.alike_rows[line].tolist() == order
        order = sorted(range(90), key=lambda row, line=line: (scores[line, row], row))[:5]
        assert found.settled()["opposed"][line].tolist() == order
