"""A whole build in every codec: it resumes to the same bytes, and its exact search answers as its index does."""

import numpy as np
import pytest

from index.settings import IndexSettings
from influence.api import open as open_run
from influence.axes import ModuleColumns
from influence.capture.cut import estimate, rows_per_shard
from influence.errors import FingerprintMismatch, StoreError
from influence.stages import build as build_module
from influence.stages.build import build_run
from influence.store.codecs import bytes_per_row
from influence.store.manifest import StoreSettings

CODECS = {
    "float16": (),
    "int8": ("store.codec=int8",),
    "int4": ("store.codec=int4",),
    "bits": ("store.codec=bits",),
    "factors": ("store.codec=factors", "store.rank=2"),
}
ASKED = [
    {"prompt": "The river was named after", "completion": " a cartographer who never saw it.", "id": "river"},
    {"prompt": "", "completion": "In winter the harbour freezes"},
]
WIDE = ("recipe.projection.p=6", "recipe.projection.q=7")


@pytest.mark.parametrize("name", CODECS)
def test_a_build_resumes_to_the_same_bytes_and_answers(configured, in_process, tmp_path, contents, name):
    config = configured("index.kind=exact", "recipe.name=graddot", *WIDE, *CODECS[name])
    build_run(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "rows" / "shard-00001.json").unlink()
    (tmp_path / "run" / "rows" / "shard-00002.safetensors").write_bytes(b"cut short")
    build_run(config, tmp_path / "run")
    assert contents(tmp_path / "run") == before
    with open_run(tmp_path / "run", device="cpu") as run:
        assert run.store.codec.name == name
        assert run.config.store.codec == name
        answers = run.query_many(ASKED, k=5)
        scores = run.score(ASKED)
    for hits, row in zip(answers, scores, strict=True):
        assert [hit.row for hit in hits.promoting] == np.argsort(-row, kind="stable")[: len(hits.promoting)].tolist()
        assert [hit.score for hit in hits.promoting] == pytest.approx([row[hit.row] for hit in hits.promoting])
        assert hits.promoting
        assert hits.opposing


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("float16", "gradcos"), ("bits", "graddot"), ("bits", "trackstar"), ("factors", "logra"), ("factors", "gradcos")],
)
def test_scanning_codes_finds_what_the_index_of_decoded_rows_finds(configured, in_process, tmp_path, name, recipe):
    found = {}
    for kind in ("exact", "flat"):
        config = configured(f"index.kind={kind}", f"recipe.name={recipe}", *CODECS[name])
        build_run(config, tmp_path / "run")
        with open_run(tmp_path / "run", device="cpu") as run:
            found[kind] = run.query_many(ASKED, k=4)
            scores = run.score(ASKED)
    for ours, theirs, row in zip(found["exact"], found["flat"], scores, strict=True):
        for side, other in ((ours.promoting, theirs.promoting), (ours.opposing, theirs.opposing)):
            assert [hit.row for hit in side] == [hit.row for hit in other]
            assert [hit.score for hit in side] == [hit.score for hit in other]
            assert [hit.score for hit in side] == pytest.approx([row[hit.row] for hit in side], rel=1e-4)


@pytest.mark.parametrize(("name", "least"), [("int8", 0.999), ("int4", 0.97), ("bits", 0.6)])
def test_fewer_bits_score_nearly_as_float16_does(configured, in_process, tmp_path, name, least):
    scores = {}
    for codec in ("float16", name):
        config = configured("index.kind=exact", "recipe.name=gradcos", *WIDE, *CODECS[codec])
        build_run(config, tmp_path / codec)
        with open_run(tmp_path / codec, device="cpu") as run:
            scores[codec] = run.score(ASKED)
    assert np.corrcoef(scores["float16"].ravel(), scores[name].ravel())[0, 1] > least


def test_copies_of_a_row_in_a_store_of_bits_score_alike_and_come_by_their_number(
    configured, in_process, tmp_path, written
):
    texts = [f"The river was named after cartographer number {number}." for number in range(12)]
    data = written(*({"text": text} for text in [*texts, *[texts[3]] * 6, *texts[:2]]))
    # One row a batch: beside others of another length its gradient rounds otherwise.
    config = configured("index.kind=exact", "recipe.name=graddot", "cluster.token_budget=2", *CODECS["bits"], data=data)
    build_run(config, tmp_path / "run")
    with open_run(tmp_path / "run", device="cpu") as run:
        scores = run.score(ASKED)
        hits = run.query("The river was named after", " cartographer number 3.", k=20)
    copies = [3, 12, 13, 14, 15, 16, 17]
    assert (scores[:, copies] == scores[:, [3]]).all()
    ranked = [hit.row for hit in (*hits.promoting, *hits.opposing) if hit.row in copies]
    assert ranked == copies


def test_another_codec_or_rank_in_the_same_directory_is_refused_with_both(
    configured, in_process, tmp_path, monkeypatch, contents
):
    config = configured("index.kind=exact", "recipe.name=graddot", *CODECS["factors"])
    build_run(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    monkeypatch.setattr(build_module, "connect", None)
    for override, told in (
        (("store.codec=factors", "store.rank=1"), "store.rank is 2 there and 1 in this run"),
        (("store.codec=bits",), "store.codec is 'factors' there and 'bits' in this run"),
    ):
        with pytest.raises(FingerprintMismatch, match=told):
            build_run(configured("index.kind=exact", "recipe.name=graddot", *override), tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_rank_that_no_layer_reaches_is_refused_before_anything_is_captured(configured, in_process, tmp_path):
    with pytest.raises(StoreError, match=r"store\.rank is 3, and the largest module's block has rank 2 at most"):
        build_run(configured("store.codec=factors", "store.rank=3"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plan_reckons_with_the_bytes_of_the_codec():
    sides = {"outputs": 64, "inputs": 64, "q": 64, "p": 64}
    modules = [ModuleColumns(name=str(n), **sides, start=4096 * n, stop=4096 * (n + 1)) for n in range(21)]
    kinds = {"curvature": "identity", "index": IndexSettings()}
    for settings, size in (
        (StoreSettings(codec="float16"), 2 * 86_016 + 4),
        (StoreSettings(codec="bits"), 10_752 + 21 * 4 + 4),
        (StoreSettings(codec="factors", rank=1), 21 * 2 * 128 + 4),
    ):
        per_shard = rows_per_shard(10**7, bytes_per_row(settings, modules), settings)
        assert per_shard == min(65_536, 256 * 2**20 // size)
        needs = estimate(10**7, modules, per_shard, codec=settings, **kinds)
        assert needs.disk_rows == 10**7 * size
        assert needs.memory_capture == 2 * per_shard * size
