"""What is saved and loaded computes to the same bits as what was saved."""

import numpy as np
import pytest
import torch

from influence.artifacts.tensors import load_tensors, save_tensors
from influence.axes import ModuleColumns
from influence.curvature.damping import Damping
from influence.curvature.projected_fisher import FisherSums, ProjectedFisher
from influence.errors import DigestMismatch

WIDTHS = (33, 7, 130, 57)


@pytest.fixture
def fisher() -> ProjectedFisher:
    modules, start = [], 0
    for number, width in enumerate(WIDTHS):
        sizes = {"outputs": 200, "inputs": 200, "q": 1, "p": width}
        modules.append(ModuleColumns(name="layer" * (number + 1), **sizes, start=start, stop=start + width))
        start += width
    sums = FisherSums(tuple(modules))
    sums.add(torch.randn(300, sum(WIDTHS), generator=torch.Generator().manual_seed(0)))
    return ProjectedFisher.prepare(sums, Damping())


@pytest.fixture
def loaded(fisher, tmp_path) -> ProjectedFisher:
    save_tensors(tmp_path / "factors.safetensors", fisher.tensors(), "f")
    tensors = load_tensors(tmp_path / "factors.safetensors", "f")
    return ProjectedFisher.from_tensors(fisher.modules, tensors, Damping())


def test_factors_that_were_saved_and_loaded_apply_to_the_same_bits(fisher, loaded):
    for rows in (1, 2, 17, 64):
        queries = torch.randn(rows, sum(WIDTHS), generator=torch.Generator().manual_seed(rows))
        assert torch.equal(loaded.apply(queries), fisher.apply(queries))


def test_eigenvectors_lie_row_by_row_before_they_are_saved_as_afterwards(fisher, loaded):
    for factors in (fisher, loaded):
        assert all(basis.is_contiguous() for basis in factors.eigenvectors)


@pytest.mark.parametrize("length", range(1, 9))
def test_loaded_tensors_start_at_a_multiple_of_64_bytes_wherever_they_lie_in_the_file(tmp_path, length):
    tensors = {"a": torch.zeros(length, dtype=torch.uint8), "b": torch.ones(5, 7), "n" * length: torch.ones(3).double()}
    save_tensors(tmp_path / "some.safetensors", tensors, "f")
    loaded = load_tensors(tmp_path / "some.safetensors", "f")
    assert {name: tensor.data_ptr() % 64 for name, tensor in loaded.items()} == dict.fromkeys(tensors, 0)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_some_tensors_are_read_against_their_own_digests_and_the_others_not_at_all(tmp_path):
    path, tensors = tmp_path / "some.safetensors", {name: torch.full((1000,), float(ord(name))) for name in "abc"}
    save_tensors(path, tensors, "f")
    content = bytearray(path.read_bytes())
    content[-10] ^= 1  # In c, the last.
    path.write_bytes(content)
    found = load_tensors(path, "f", ["a", "b", "absent"])
    assert found.keys() == {"a", "b"}
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    with pytest.raises(DigestMismatch, match=r"some\.safetensors: c has the digest \w+, its record expects \w+"):
        load_tensors(path, "f", ["a", "c"])
    with pytest.raises(DigestMismatch, match="was made for f, expected g"):
        load_tensors(path, "g", ["a"])


def test_a_tensor_without_elements_is_saved_and_loaded(tmp_path):
    nobody = torch.from_numpy(np.zeros(5, dtype=np.int64)[:0].copy())
    save_tensors(tmp_path / "rows.safetensors", {"rows": nobody}, "f")
    found = load_tensors(tmp_path / "rows.safetensors", "f", ["rows"])["rows"]
    assert (found.shape, found.dtype) == ((0,), torch.int64)
