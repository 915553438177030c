"""The projected Fisher: mergeable sums, exact inverses, bit-identical repeats."""

import pytest
import torch

from influence.axes import ModuleColumns
from influence.curvature.damping import Damping
from influence.curvature.projected_fisher import FisherSums, ProjectedFisher
from influence.errors import CurvatureError

MODULES = (
    ModuleColumns(name="a", outputs=9, inputs=9, q=2, p=3, start=0, stop=6),
    ModuleColumns(name="b", outputs=9, inputs=9, q=2, p=2, start=6, stop=10),
)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(30, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def summed(*blocks: torch.Tensor) -> FisherSums:
    sums = FisherSums(MODULES)
    for block in blocks:
        sums.add(block)
    return sums


def test_partial_sums_merge_to_the_whole(rows):
    left, right = summed(rows[:11]), summed(rows[11:20], rows[20:])
    left.merge(right)
    whole = summed(rows)
    assert left.count == whole.count == 30
    for name in ("a", "b"):
        torch.testing.assert_close(left.sums[name], whole.sums[name])


def test_without_damping_it_is_the_exact_block_inverse(rows):
    fisher = ProjectedFisher.prepare(summed(rows), Damping(value=0), dtype=torch.float64)
    block = rows[:, :6].T @ rows[:, :6] / 30
    torch.testing.assert_close(fisher.apply(rows)[:, :6], torch.linalg.solve(block, rows[:, :6].T).T)


def test_two_halves_are_one_whole_inverse(rows):
    fisher = ProjectedFisher.prepare(summed(rows), Damping(), dtype=torch.float64)
    torch.testing.assert_close(fisher.apply(fisher.apply(rows, -0.5), -0.5), fisher.apply(rows))


def test_relative_damping_is_a_share_of_each_modules_mean_eigenvalue_and_absolute_is_itself(rows):
    relative = ProjectedFisher.prepare(summed(rows), Damping(value=0.5))
    for values, damping in zip(relative.eigenvalues, relative.dampings, strict=True):
        assert damping == pytest.approx(0.5 * float(values.mean()))
    absolute = ProjectedFisher.prepare(summed(rows), Damping(kind="absolute", value=0.5))
    assert absolute.dampings == (0.5, 0.5)


def test_applying_it_changes_no_state(rows):
    fisher = ProjectedFisher.prepare(summed(rows), Damping())
    first = fisher.apply(rows.float())
    assert torch.equal(fisher.apply(rows.float()), first)


def test_it_survives_being_written_as_tensors(rows):
    fisher = ProjectedFisher.prepare(summed(rows), Damping())
    again = ProjectedFisher.from_tensors(MODULES, fisher.tensors(), Damping())
    assert torch.equal(again.apply(rows.float()), fisher.apply(rows.float()))
    sums = summed(rows)
    assert torch.equal(FisherSums.from_tensors(MODULES, sums.tensors()).sums["b"], sums.sums["b"])


def test_what_was_written_is_read_under_any_damping(rows):
    written = ProjectedFisher.prepare(summed(rows), Damping()).tensors()
    heavier = ProjectedFisher.prepare(summed(rows), Damping(value=0.7))
    read = ProjectedFisher.from_tensors(MODULES, written, Damping(value=0.7))
    assert read.dampings == heavier.dampings
    assert torch.equal(read.apply(rows.float()), heavier.apply(rows.float()))


def test_the_spectrum_says_how_much_of_the_trace_the_damping_outweighs(rows):
    spectra = list(ProjectedFisher.prepare(summed(rows), Damping(kind="absolute", value=1e9)).spectra())
    assert [spectrum.module for spectrum in spectra] == ["a", "b"]
    assert spectra[0].trace_share_under_damping == pytest.approx(1)


def test_a_sum_that_is_not_finite_is_refused_by_module_name(rows):
    rows[3, 8] = float("inf")
    with pytest.raises(CurvatureError, match="Fisher of b is not finite"):
        ProjectedFisher.prepare(summed(rows), Damping())


def test_no_rows_and_a_block_too_wide_are_refused():
    with pytest.raises(CurvatureError, match="needs rows"):
        ProjectedFisher.prepare(FisherSums(MODULES), Damping())
    wide = ModuleColumns(name="big", outputs=999, inputs=999, q=256, p=256, start=0, stop=65_536)
    with pytest.raises(CurvatureError, match=r"big has 65,536 columns \(256×256\)"):
        FisherSums((wide,))
