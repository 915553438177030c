"""Objects are read, listed and written as files are; they appear whole or not at all; errors say what to do."""

import hashlib
import io
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from influence.artifacts import upload
from influence.artifacts.access import bytes_under, each, fill, listed, names_in, source
from influence.artifacts.digest import sha256, verify
from influence.artifacts.excerpt import excerpt
from influence.artifacts.partial import PartialFile, remove_partials, write_whole
from influence.artifacts.place import run_path
from influence.artifacts.s3 import S3
from influence.artifacts.tensors import load_tensors, save_tensors
from influence.errors import DigestMismatch, StoreError
from influence.stages.mirror import filled, on_disk

CONTENT = bytes(range(256)) * 40


def uploads(folder) -> int:
    found = folder.fs.call_s3("list_multipart_uploads", Bucket="lab", Prefix=folder.key.removeprefix("lab/"))
    return len(found.get("Uploads", ()))


def test_an_object_is_read_whole_in_ranges_and_as_a_stream(folder):
    path = folder / "a.bin"
    path.write_bytes(CONTENT)
    assert path.read_bytes() == CONTENT
    assert path.read_ranges([(0, 3), (5, 5), (300, 700)]) == [CONTENT[:3], b"", CONTENT[300:700]]
    with path.open("rb", 100) as stream:
        assert (stream.read(7), stream.seek(-5, io.SEEK_END), stream.read()) == (CONTENT[:7], 10235, CONTENT[-5:])
    assert sha256(path) == hashlib.sha256(CONTENT).hexdigest()


def test_pieces_are_filled_from_an_object_as_from_a_file(folder, tmp_path):
    for path in (folder / "a.bin", tmp_path / "a.bin"):
        path.write_bytes(CONTENT)
        first, second = bytearray(4), np.zeros(300, dtype=np.uint8)
        assert fill(path, [(2, memoryview(first)), (1000, second.data)]) == 0
        assert (bytes(first), second.tobytes()) == (CONTENT[2:6], CONTENT[1000:1300])
        assert fill(path, [(0, memoryview(first)), (len(CONTENT) - 10, second.data)]) == 290


def test_folders_are_listed_as_on_a_disk_and_need_no_making(folder, tmp_path):
    for root in (folder, tmp_path / "run"):
        assert (root.exists(), root.is_dir(), names_in(root)) == (False, False, set())
        (root / "rows").mkdir(parents=True)
        for name, size in (("a.json", 3), ("rows/b.json", 5), ("rows/c.bin", 7)):
            (root / name).write_bytes(b"x" * size)
        assert names_in(root) == {"a.json", "rows"}
        assert names_in(root / "rows") == {"b.json", "c.bin"}
        assert sorted(path.name for path in (root / "rows").glob("*.json")) == ["b.json"]
        assert bytes_under(root) == 15
        assert (root.is_dir(), root.is_file()) == (True, False)
        assert ((root / "a.json").is_dir(), (root / "a.json").is_file()) == (False, True)
        (root / "a.json").unlink()
        (root / "a.json").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            (root / "a.json").unlink()
        with pytest.raises(FileNotFoundError):
            (root / "a.json").stat()
    assert listed(folder) == {"rows/b.json": 5, "rows/c.bin": 7}
    assert listed(tmp_path / "run") is None


def test_threads_that_want_one_object_read_it_once_for_its_digest(folder, monkeypatch):
    path, digest, reads = folder / "a", hashlib.sha256(CONTENT).hexdigest(), []
    path.write_bytes(CONTENT)
    monkeypatch.setattr("influence.artifacts.checksum.sha256", lambda read: (reads.append(read), sha256(read))[1])
    assert list(each(lambda _: verify(path, digest, len(CONTENT), ""), range(20), folder)) == [None] * 20
    assert reads == [path]


def test_another_content_of_the_same_length_is_another_state(folder):
    path = folder / "a"
    path.write_bytes(b"one")
    before = path.stat()
    path.write_bytes(b"two")
    assert before.st_size == path.stat().st_size == 3
    assert before.st_ino != path.stat().st_ino


def test_a_digest_is_looked_at_again_once_the_object_was_replaced(folder, flip):
    path = folder / "a"
    path.write_bytes(CONTENT)
    verify(path, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "")
    flip(path, 99)
    with pytest.raises(DigestMismatch, match="its commit record expects"):
        verify(path, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "")


def test_an_object_is_created_once_and_replaced_only_as_it_was_seen(folder):
    path = folder / "a"
    path.create(b"one")
    with pytest.raises(FileExistsError):
        path.create(b"two")
    seen = path.stat().tag
    path.write_bytes(b"three")
    with pytest.raises(FileExistsError):
        path.fs.replace_unchanged(path.key, b"four", seen)
    path.fs.replace_unchanged(path.key, b"four", path.stat().tag)
    assert path.read_bytes() == b"four"


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_an_upload_appears_when_it_is_published_and_not_before(folder, monkeypatch, parts):
    monkeypatch.setattr(upload, "PART_BYTES", 5 * 2**20)
    content = np.random.default_rng(0).bytes(parts * 5 * 2**20 + 17)
    file = PartialFile(folder / "a")
    for start in range(0, len(content), 2**22):
        file.write(content[start : start + 2**22])
    file.finish()
    assert names_in(folder) == set()
    file.publish()
    file.discard()
    assert (folder / "a").read_bytes() == content
    assert (file.size, file.digest) == (len(content), hashlib.sha256(content).hexdigest())
    assert uploads(folder) == 0


def test_an_upload_that_is_dropped_or_abandoned_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr(upload, "PART_BYTES", 5 * 2**20)
    for drop in (True, False):
        file = PartialFile(folder / "rows" / "a")
        file.write(b"x" * 12 * 2**20)
        assert uploads(folder) == 1
        if drop:
            file.discard()
            assert uploads(folder) == 0
    beside = PartialFile(run_path(f"{folder}-beside") / "a")
    beside.write(b"x" * 12 * 2**20)
    assert remove_partials(folder) == 1
    assert (uploads(folder / "rows"), names_in(folder)) == (0, set())
    beside.finish()
    beside.publish()
    assert (beside.path).stat().st_size == 12 * 2**20


def test_parquet_is_read_from_an_object(folder):
    table = pa.table({"row": list(range(5000)), "text": [f"text {n}" for n in range(5000)]})
    file = PartialFile(folder / "a.parquet")
    pq.write_table(table, file, row_group_size=1000)
    file.finish()
    file.publish()
    with pq.ParquetFile(source(folder / "a.parquet")) as found:
        assert found.read_row_group(3, columns=["text"]).equals(table.slice(3000, 1000).select(["text"]))


def test_some_tensors_of_an_object_are_those_that_were_saved(folder):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.arange(4, dtype=torch.int64),
        "c": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 2),
    }
    save_tensors(folder / "t.safetensors", tensors, "print")
    for names in ({"a", "c", "empty", "none"}, {"b"}, set(), None):
        found = load_tensors(folder / "t.safetensors", "print", names)
        assert found.keys() == tensors.keys() & (names if names is not None else tensors.keys())
        assert all(
            torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found
        )


def test_a_flipped_bit_of_a_tensor_is_refused(folder, flip):
    path = folder / "t.safetensors"
    save_tensors(path, {"a": torch.arange(6.0), "b": torch.arange(4.0)}, "print")
    flip(path, path.stat().st_size - 1)
    load_tensors(path, "print", {"a"})
    for names in ({"b"}, None):
        with pytest.raises(DigestMismatch, match=str(path)):
            load_tensors(path, "print", names)


@pytest.mark.parametrize("at", [0, 3, 9, 40])
def test_a_spoilt_header_is_refused_and_decides_nothing(folder, flip, at):
    path = folder / "t.safetensors"
    path.write_bytes(save({"a": torch.arange(6.0)}))
    flip(path, at)
    with suppress(ValueError):
        excerpt(path, {"a"})
    save_tensors(path, {"a": torch.arange(6.0)}, "print")
    flip(path, at)
    with pytest.raises(DigestMismatch):
        load_tensors(path, "print")


def test_many_small_requests_keep_their_order(folder):
    for number in range(40):
        (folder / str(number)).write_bytes(str(number).encode())
    assert list(each(lambda n: (folder / str(n)).read_bytes(), range(40), folder)) == [
        str(n).encode() for n in range(40)
    ]


def test_a_folder_goes_up_with_its_records_last_and_comes_down_once(folder, monkeypatch):
    published, publish = [], PartialFile.publish
    monkeypatch.setattr(PartialFile, "publish", lambda file: (published.append(file.path.name), publish(file)))
    with filled(folder) as work:
        (work / "lists").mkdir()
        (work / "lists" / "params.json").write_text("{}")
        (work / "z.bin").write_bytes(CONTENT)
        (work / "index.json").write_bytes(b"{}")
        assert names_in(folder) == set()
    assert published == ["params.json", "z.bin", "index.json"]
    with on_disk(folder) as copy:
        there = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
        assert there == {"lists/params.json", "z.bin", "index.json"}
        assert (copy / "z.bin").read_bytes() == CONTENT
        again = copy
    with on_disk(folder) as copy:
        assert copy == again
    (folder / "z.bin").write_bytes(CONTENT[::-1])
    with on_disk(folder) as copy:
        assert copy != again
        assert (copy / "z.bin").read_bytes() == CONTENT[::-1]
    assert not again.exists()


def test_several_that_want_a_folder_at_once_all_get_it(folder):
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(CONTENT)

    def read(_: int) -> int:
        with on_disk(folder) as copy:
            return sum(path.stat().st_size for path in copy.iterdir())

    assert list(each(read, range(12), folder)) == [4 * len(CONTENT)] * 12


def test_what_is_wrong_with_a_copy_is_told_of_the_object_and_the_copy_goes(folder):
    (folder / "index.bin").write_bytes(CONTENT)
    opened = on_disk(folder)
    copy = opened.__enter__()
    assert copy.exists()
    error = DigestMismatch(f"{copy / 'index.bin'} is damaged")
    with pytest.raises(DigestMismatch, match=f"^{folder}/index.bin is damaged$"):
        opened.__exit__(DigestMismatch, error, None)
    assert not copy.exists()


def test_a_folder_that_is_filled_anew_loses_what_it_held(folder):
    for name in ("old.json", "old.bin", "both.bin"):
        (folder / name).write_bytes(b"old")
    with filled(folder) as work:
        (work / "both.bin").write_bytes(b"new")
    assert names_in(folder) == {"both.bin"}
    assert (folder / "both.bin").read_bytes() == b"new"


def test_a_bucket_that_is_not_there_is_named_and_never_made(folder):
    path = run_path("s3://nowhere/runs/x")
    with pytest.raises(StoreError, match="no bucket nowhere"):
        path.exists()
    with pytest.raises(StoreError, match="no bucket nowhere"):
        write_whole(path / "a", b"")


@pytest.mark.parametrize(
    ("unset", "changed", "said"),
    [
        (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), {}, "no credentials.*AWS_ACCESS_KEY_ID"),
        ((), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect.*AWS_ENDPOINT_URL"),
        ((), {"AWS_ENDPOINT_URL": "nonsense"}, "Invalid endpoint.*AWS_ENDPOINT_URL"),
    ],
)
def test_what_stands_between_here_and_the_store_is_said_with_what_to_set(monkeypatch, unset, changed, said):
    for name in unset:
        monkeypatch.delenv(name)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    elsewhere = S3(use_listings_cache=False, skip_instance_cache=True)
    with pytest.raises(StoreError, match=said):
        elsewhere.info("lab/x")


def test_a_refusal_is_not_taken_for_an_absence(folder, monkeypatch):
    async def refused(*args, **kwargs):
        raise PermissionError("Forbidden")

    (folder / "a").write_bytes(b"")
    monkeypatch.setattr("s3fs.S3FileSystem._call_s3", refused)
    for ask in (folder.exists, (folder / "a").is_file, (folder / "a").stat, lambda: names_in(folder)):
        with pytest.raises(StoreError, match=r"was refused \(403: Forbidden\)"):
            ask()
