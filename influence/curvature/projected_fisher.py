"""The projected Gauss-Newton (Fisher) matrix of each module, from stored rows.

For module m with projected gradients V_n, [Q, P], the block is F_m = (1/N) Σ_n vec(V_n) vec(V_n)ᵀ, [QP, QP]: the
Fisher of the *mean* example loss in the projected coordinates, block diagonal over modules. The rows are gradients of
the data's own labels, so this is the empirical Fisher. It is summed in float64 as mergeable partials, decomposed once
in float64, and applied as (F + λ)^power with λ = c · mean(Λ) per module.

Source: Choe et al. 2024, "What is Your Data Worth to GPT?" (LoGra), section 3; Park et al. 2023 (TRAK), equation 15.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

from influence.axes import ND, ModuleColumns
from influence.curvature.damping import Damping
from influence.curvature.spectrum import Spectrum, spectrum_of
from influence.errors import CurvatureError

log = logging.getLogger(__name__)

COLUMN_LIMIT = 16_384
"""The widest block (Q·P columns) that is decomposed; its matrix holds the square of that in float64."""


def blocks_of(modules: Sequence[ModuleColumns], blocks: Literal["module", "all"]) -> tuple[ModuleColumns, ...]:
    """Return the blocks of a Fisher: the modules themselves, or `all` their columns as one."""
    if blocks == "module":
        return tuple(modules)
    width = modules[-1].stop
    return (ModuleColumns(name="all modules", outputs=1, inputs=width, q=1, p=width, start=0, stop=width),)


@dataclass
class FisherSums:
    """Σ_n vec(V_n) vec(V_n)ᵀ of each module over some rows; sums of disjoint rows merge by addition."""

    modules: tuple[ModuleColumns, ...]
    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse blocks too wide to decompose, by name, and start the sums at zero."""
        for module in self.modules:
            width = module.stop - module.start
            if width > COLUMN_LIMIT:
                raise CurvatureError(
                    f"{module.name} has {width:,} columns ({module.q}×{module.p}); its Fisher would be {width:,}² and "
                    f"the limit is {COLUMN_LIMIT:,}. Use a narrower projection, or a recipe without a "
                    "Fisher (graddot, gradcos)."
                )
            if module.name not in self.sums:
                self.sums[module.name] = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: ND) -> None:
        """Add rows [n, D], gradients of the summed example loss, to the sums."""
        self.count += len(rows)
        for module in self.modules:
            block = rows[:, module.start : module.stop].to("cpu")
            self.sums[module.name] += block.T @ block

    def merge(self, other: Self) -> None:
        """Add the sums of other rows; merge in a fixed order for the same bits every time."""
        self.count += other.count
        for name, total in self.sums.items():
            total += other.sums[name]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, to be saved."""
        return {"count": torch.tensor(self.count), **{f"sum.{name}": total for name, total in self.sums.items()}}

    @classmethod
    def from_tensors(cls, modules: Sequence[ModuleColumns], tensors: Mapping[str, Tensor]) -> Self:
        """Return the sums that `tensors()` gave."""
        sums = {module.name: tensors[f"sum.{module.name}"] for module in modules}
        return cls(tuple(modules), int(tensors["count"]), sums)


@dataclass(frozen=True)
class ProjectedFisher:
    """(F + λ) of each module, decomposed: apply it to as many queries as there are.

    Attributes:
        modules: Which columns each block stands on.
        eigenvalues: Λ of each module, [QP], float64, ascending.
        eigenvectors: Their eigenvectors as columns, [QP, QP].
        dampings: λ of each module.
    """

    modules: tuple[ModuleColumns, ...]
    eigenvalues: tuple[Tensor, ...]
    eigenvectors: tuple[Tensor, ...]
    dampings: tuple[float, ...]

    @classmethod
    def prepare(cls, sums: FisherSums, damping: Damping, dtype: torch.dtype = torch.float32) -> Self:
        """Decompose the mean of the sums.

        Args:
            sums: Over every row, or over a sample of them.
            damping: λ, relative to each module's mean eigenvalue unless absolute.
            dtype: Of the eigenvectors and of what `apply` computes in; the decomposition itself is float64.

        Raises:
            CurvatureError: No rows, a sum that isn't finite, or a singular block without damping; the module is named.
        """
        if sums.count == 0:
            raise CurvatureError("A Fisher needs rows; there are none.")
        widths = [module.stop - module.start for module in sums.modules]
        if max(widths, default=0) > sums.count:
            log.warning(
                "%d of %d blocks of the Fisher have more columns (up to %d) than there are rows (%d): in the "
                "directions that no row has, the damping alone decides. Use more rows, or a narrower projection.",
                sum(width > sums.count for width in widths),
                len(widths),
                max(widths),
                sums.count,
            )
        values, vectors = [], []
        for module in sums.modules:
            matrix = sums.sums[module.name] / sums.count
            if not bool(torch.isfinite(matrix).all()):
                raise CurvatureError(f"The Fisher of {module.name} is not finite: a row's gradient overflowed.")
            eigenvalues, basis = torch.linalg.eigh(matrix)
            values.append(eigenvalues.clamp(min=0))
            # LAPACK returns columns side by side; the same numbers in another order multiply with other roundings.
            vectors.append(basis.to(dtype).contiguous())
        return cls.damped(sums.modules, values, vectors, damping)

    @classmethod
    def damped(
        cls,
        modules: Sequence[ModuleColumns],
        eigenvalues: Sequence[Tensor],
        eigenvectors: Sequence[Tensor],
        damping: Damping,
    ) -> Self:
        """Put a damping on a decomposition.

        Raises:
            CurvatureError: A block is singular and the damping is 0; the module is named.
        """
        dampings = []
        for module, values in zip(modules, eigenvalues, strict=True):
            damp = damping.resolve(values)
            if damp == 0 and float(values[0]) <= float(values[-1]) * len(values) * torch.finfo(torch.float64).eps:
                raise CurvatureError(
                    f"The Fisher of {module.name} ({len(values)} columns) is singular and the damping is 0: set a "
                    "damping above 0, or use more rows than columns."
                )
            dampings.append(damp)
        return cls(tuple(modules), tuple(eigenvalues), tuple(eigenvectors), tuple(dampings))

    def apply(self, vectors: ND, power: float = -1.0) -> ND:
        """Return (F + λ)^power v for every vector, [n, D]: −1 on one side, or −½ on each."""
        out = torch.empty_like(vectors)
        parts = zip(self.modules, self.eigenvalues, self.eigenvectors, self.dampings, strict=True)
        for module, values, basis, damping in parts:
            columns = slice(module.start, module.stop)
            scale = ((values + damping) ** power).to(basis.dtype)
            out[:, columns] = (((vectors[:, columns].to(basis.dtype) @ basis) * scale) @ basis.T).to(out.dtype)
        return out

    def mean_absolute_inverse(self) -> float:
        """Return the mean absolute value of the entries of (F + λ)⁻¹, of a Fisher of one block."""
        assert len(self.modules) == 1, "a recipe rescales only a Fisher over all columns"
        basis = self.eigenvectors[0].double()
        return float(((basis / (self.eigenvalues[0] + self.dampings[0])) @ basis.T).abs().mean())

    def spectra(self) -> Iterable[Spectrum]:
        """Yield each module's spectrum; the share of the trace below λ says how much the damping decides."""
        for module, values, damping in zip(self.modules, self.eigenvalues, self.dampings, strict=True):
            yield spectrum_of(module.name, values, damping)

    def tensors(self) -> dict[str, Tensor]:
        """Return the decomposition as named tensors, to be saved; damping is put on it anew when it is read."""
        tensors = {}
        for module, values, basis in zip(self.modules, self.eigenvalues, self.eigenvectors, strict=True):
            tensors[f"eigenvalues.{module.name}"] = values
            tensors[f"eigenvectors.{module.name}"] = basis
        return tensors

    @classmethod
    def from_tensors(cls, modules: Sequence[ModuleColumns], tensors: Mapping[str, Tensor], damping: Damping) -> Self:
        """Return the decomposition that `tensors()` gave, under a damping.

        Raises:
            CurvatureError: See `damped`.
        """
        values = [tensors[f"eigenvalues.{module.name}"] for module in modules]
        return cls.damped(modules, values, [tensors[f"eigenvectors.{module.name}"] for module in modules], damping)
