"""Damaged, foreign and missing files: what a reader refuses, and what its message says."""

import json
import os
from hashlib import sha256

import pytest

from influence.artifacts.digest import seal
from influence.errors import DigestMismatch, FingerprintMismatch, FormatVersionMismatch, Incomplete, StoreError
from influence.store.manifest import Manifest, check_fingerprint, fingerprint_of
from influence.store.reader import Store, missing_shards
from influence.store.writer import committed

REMEDY = r"Delete .*shard-00001\.json and run the same build again"


def read_everything(store):
    list(store.blocks())
    store.metadata_files()


@pytest.mark.parametrize("kind", ["vectors", "metadata"])
def test_a_flipped_byte_is_refused_with_the_file_and_what_to_do(run, flip, kind):
    store = run.write_all()
    path = getattr(run.files(1), kind)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(DigestMismatch, match=rf"{path.name} has sha256 \w+, its commit record expects \w+\. {REMEDY}"):
        read_everything(store)


@pytest.mark.parametrize("kind", ["vectors", "metadata"])
def test_a_truncated_file_is_refused_with_both_lengths(run, kind):
    store = run.write_all()
    path = getattr(run.files(1), kind)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DigestMismatch, match=rf"has {size - 5:,} bytes, its commit record expects {size:,}.*{REMEDY}"):
        read_everything(store)


@pytest.mark.parametrize("kind", ["vectors", "metadata"])
def test_a_data_file_that_is_gone_is_named(run, kind):
    store = run.write_all()
    getattr(run.files(1), kind).unlink()
    with pytest.raises(DigestMismatch, match=f"is missing; its commit record expects .*{REMEDY}"):
        read_everything(store)


def test_any_flipped_byte_of_a_commit_record_is_refused(run, flip):
    store = run.write_all()
    record = run.files(1).record
    for offset in range(0, record.stat().st_size, 5):
        flip(record, offset)
        with pytest.raises(StoreError, match=record.name):
            store.zero_rows()
        flip(record, offset)
    assert store.zero_rows().tolist() == [5]


def test_a_flipped_byte_of_the_manifest_is_refused(run, flip):
    run.write_all()
    path = run.folder / "manifest.json"
    flip(path, path.read_bytes().index(b"projection.seed"))
    with pytest.raises(DigestMismatch, match=r"manifest\.json .* run the same build again"):
        Store(run.folder)


def test_a_half_manifest_is_refused(run):
    run.write_all()
    path = run.folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DigestMismatch, match="isn't the JSON document that was written"):
        Store(run.folder)


def test_verify_lists_every_damaged_file_even_those_read_before(run, flip):
    store = run.write_all()
    store.verify()
    run.files(0).metadata.unlink()
    run.files(2).vectors.write_bytes(b"")
    with pytest.raises(DigestMismatch) as caught:
        store.verify()
    assert "shard-00000.parquet is missing" in str(caught.value)
    assert "shard-00002.safetensors has 0 bytes" in str(caught.value)
    assert "shard-00001" not in str(caught.value)


def test_verify_finds_a_byte_that_rotted_without_changing_the_files_time(run, flip):
    store = run.write_all()
    store.verify()
    path = run.files(1).vectors
    stat = path.stat()
    flip(path, stat.st_size - 1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DigestMismatch, match=r"shard-00001\.safetensors has sha256"):
        store.verify()


def test_an_undamaged_shard_is_still_read_beside_a_damaged_one(run):
    store = run.write_all()
    run.files(1).vectors.unlink()
    assert store.vectors([0, 10]).any()


@pytest.mark.parametrize("name", ["manifest.json", "rows/shard-00001.json"])
def test_another_format_version_is_refused_with_both_versions(run, name):
    run.write_all()
    path = run.folder / name
    document = json.loads(path.read_bytes())
    del document["sha256"]
    path.write_bytes(seal({**document, "format_version": 7}))
    with pytest.raises(FormatVersionMismatch, match=rf"{path.name} has format version 7, this release reads .* 1\."):
        list(Store(run.folder).blocks())


def test_a_shard_of_another_run_names_the_part_that_differs_with_both_values(make_run):
    ours, theirs = make_run("ours"), make_run("theirs", parts={"model": "3f2a", "projection.seed": 7, "batch": 2})
    store = ours.write_all()
    theirs.write_all()
    for kind in ("vectors", "metadata", "record"):
        getattr(theirs.files(1), kind).replace(getattr(ours.files(1), kind))
    differs = (
        r"shard-00001\.json has fingerprint \w+, this run has \w+: batch is 2 there and absent in this run; "
        r"max_tokens is absent there and 512 in this run; projection\.seed is 7 there and 0 in this run\."
    )
    with pytest.raises(FingerprintMismatch, match=differs):
        list(store.blocks())
    with pytest.raises(FingerprintMismatch, match=differs):
        committed(ours.folder, ours.manifest.shards[1], ours.manifest.fingerprint)


def test_a_mismatch_whose_parts_were_not_recorded_says_so():
    with pytest.raises(
        FingerprintMismatch, match="x has fingerprint aa, this run has bb: no part that was recorded differs"
    ):
        check_fingerprint("x", "aa", {}, "bb", {})


def test_parts_that_python_calls_equal_are_told_apart_as_their_fingerprints_are():
    found, expected = {"bias": True}, {"bias": 1}
    with pytest.raises(FingerprintMismatch, match="bias is True there and 1 in this run"):
        check_fingerprint("x", fingerprint_of(found), found, fingerprint_of(expected), expected)


def test_another_run_can_not_be_built_into_the_same_directory(make_run):
    run = make_run()
    run.write_all()
    other = make_run(parts={"model": "9c01", "projection.seed": 0, "max_tokens": 512})
    with pytest.raises(
        FingerprintMismatch, match=r"model is '3f2a' there and '9c01' in this run\. .*another directory"
    ):
        other.manifest.save(run.folder)


def test_the_same_run_with_another_plan_can_not_be_built_into_the_same_directory(make_run):
    run = make_run()
    run.write_all()
    with pytest.raises(StoreError, match="same fingerprint as this run and other shards"):
        make_run(rows_per_shard=5).manifest.save(run.folder)
    moved = make_run(rows_per_shard=5)
    with pytest.raises(StoreError, match="commits rows 4 to 8, the plan says 5 to 10"):
        committed(run.folder, moved.manifest.shards[1], moved.manifest.fingerprint)


def test_a_resumed_run_keeps_its_first_manifest_and_logs_what_changed_around_it(make_run, caplog):
    run = make_run(meta={"torch": "2.6"})
    run.manifest.save(run.folder)
    before = run.bytes_on_disk()
    make_run(meta={"torch": "2.7"}).manifest.save(run.folder)
    assert run.bytes_on_disk() == before
    assert "torch: '2.6', now '2.7'" in caplog.text


def test_missing_shards_are_listed_and_the_same_build_resumes(run):
    run.write_all()
    run.files(0).record.unlink()
    run.files(2).record.unlink()
    with pytest.raises(Incomplete, match=r"lacks 2 of 3 shards: 0, 2\. Run the same build again") as caught:
        Store(run.folder)
    assert caught.value.exit_code == 4
    assert missing_shards(run.folder, run.manifest) == [0, 2]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"holds no run: there is no manifest\.json"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shards", [{"shard": 0, "start": 0, "stop": 4}, {"shard": 1, "start": 5, "stop": 11}], "must start at row 4"),
        ("rows", 12, "the shards end at row 11, there are 12 rows"),
        ("dims", 7, "the modules end at column 6, a row has 7"),
        ("surprise", 1, "surprise"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(run, field, value, message):
    run.write_all()
    path = run.folder / "manifest.json"
    document = {**run.manifest.model_dump(mode="json"), field: value}
    path.write_bytes(seal(document))
    with pytest.raises(StoreError, match=message):
        Manifest.load(run.folder)


def test_a_record_that_commits_other_rows_than_planned_is_refused(run):
    store = run.write_all()
    record = run.write(1)
    run.files(1).record.write_bytes(record.model_copy(update={"stop": 7}).dump())
    with pytest.raises(StoreError, match="commits rows 4 to 7 of 6 columns"):
        list(store.blocks())


def test_a_vectors_file_laid_out_otherwise_is_refused_though_its_digest_holds(run):
    store = run.write_all()
    record = run.write(1)
    content = run.files(1).vectors.read_bytes().replace(b'"F16"', b'"U16"')
    run.files(1).vectors.write_bytes(content)
    name = run.files(1).vectors.name
    digests = {**record.digests, name: sha256(content).hexdigest()}
    run.files(1).record.write_bytes(record.model_copy(update={"digests": digests}).dump())
    with pytest.raises(StoreError, match="isn't laid out as the norms of 4 rows and their 6 columns in codec float16"):
        list(store.blocks())
