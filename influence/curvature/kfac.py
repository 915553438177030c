"""K-FAC: each module's curvature as the Kronecker product of two covariances, in its eigenbasis.

    A = Q_A λ_A Q_Aᵀ     S = Q_S λ_S Q_Sᵀ     Λ = λ_S λ_Aᵀ     (H + λ)^power G = Q_S [(Q_Sᵀ G Q_A) (Λ + λ)^power] Q_Aᵀ

`decompose` gives the eigenbasis once, in float64; `kfac` puts K-FAC's eigenvalues on it, and `ekfac.py` better ones.
Both give a `KroneckerCurvature`, frozen, to be applied to as many gradients as there are.

Source: Martens & Grosse 2015, section 4.2; damping of the product rather than of the factors as in George et al. 2018.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from influence.axes import ND, ModuleColumns
from influence.curvature.covariance import CovarianceSums, FactorSettings, ModuleWidths
from influence.curvature.damping import Damping
from influence.curvature.spectrum import Spectrum, spectrum_of
from influence.errors import CurvatureError


@dataclass(frozen=True)
class Side:
    """One side's eigenbasis, of a factor of width W cut into diagonal blocks.

    Attributes:
        vectors: Orthonormal eigenvectors as columns, [w, w] a block, in the dtype that is computed in.
        values: Eigenvalues, [W], float64, ascending within each block, none negative.
    """

    vectors: tuple[Tensor, ...]
    values: Tensor

    def rotate(self, tensor: Tensor) -> Tensor:
        """Return x Q for the last axis, [..., W]: into the eigenbasis."""
        return self._multiply(tensor, self.vectors)

    def rotate_back(self, tensor: Tensor) -> Tensor:
        """Return x Qᵀ for the last axis, [..., W]: out of the eigenbasis."""
        return self._multiply(tensor, tuple(block.T for block in self.vectors))

    def _multiply(self, tensor: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
        if len(blocks) == 1:
            return tensor @ blocks[0]
        pieces = tensor.split([len(block) for block in blocks], dim=-1)
        return torch.cat([piece @ block for piece, block in zip(pieces, blocks, strict=True)], dim=-1)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Side":
        """Return the same with its eigenvectors on a device and in a dtype."""
        return Side(tuple(block.to(device, dtype) for block in self.vectors), self.values)


@dataclass(frozen=True)
class ModuleBasis:
    """One module's two eigenbases."""

    name: str
    inputs: Side
    outputs: Side

    def rotate(self, gradients: Tensor) -> Tensor:
        """Return Q_Sᵀ G Q_A of gradients [..., O, I]."""
        rotated = self.inputs.rotate(gradients)
        return self.outputs.rotate(rotated.transpose(-1, -2)).transpose(-1, -2)

    def rotate_back(self, gradients: Tensor) -> Tensor:
        """Return Q_S G Q_Aᵀ of gradients [..., O, I]."""
        rotated = self.inputs.rotate_back(gradients)
        return self.outputs.rotate_back(rotated.transpose(-1, -2)).transpose(-1, -2)

    def to(self, device: torch.device, dtype: torch.dtype) -> "ModuleBasis":
        """Return the same with its eigenvectors on a device and in a dtype."""
        return ModuleBasis(self.name, self.inputs.to(device, dtype), self.outputs.to(device, dtype))


@dataclass(frozen=True)
class Eigenbasis:
    """The eigenbases of every tracked module, in their order.

    Attributes:
        modules: Of each module.
        loss: The mean loss of the rows that the factors are fitted to, in nats, summed over a row's tokens; NaN where
            an earlier version fitted them.
    """

    modules: tuple[ModuleBasis, ...]
    loss: float = math.nan

    def __getitem__(self, name: str) -> ModuleBasis:
        """Return a module's basis.

        Raises:
            CurvatureError: There is none of that name; both sides are listed.
        """
        for module in self.modules:
            if module.name == name:
                return module
        names = ", ".join(module.name for module in self.modules[:8])
        raise CurvatureError(f"There are no factors for {name}; these are for {names}. They belong to another model.")

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, to be saved."""
        tensors = {"loss": torch.tensor(self.loss, dtype=torch.float64)}
        for module in self.modules:
            for name, side in (("inputs", module.inputs), ("outputs", module.outputs)):
                tensors[f"values.{name}.{module.name}"] = side.values
                for number, block in enumerate(side.vectors):
                    tensors[f"vectors.{name}.{number}.{module.name}"] = block
        return tensors

    @classmethod
    def from_tensors(
        cls, modules: Sequence[ModuleWidths], settings: FactorSettings, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Return the state that `tensors()` gave."""

        def side(module: ModuleWidths, name: str, width: int) -> Side:
            count = len(settings.cut(module.name, name, width))
            vectors = tuple(tensors[f"vectors.{name}.{number}.{module.name}"] for number in range(count))
            return Side(vectors, tensors[f"values.{name}.{module.name}"])

        return cls(
            tuple(
                ModuleBasis(module.name, side(module, "inputs", module.inputs), side(module, "outputs", module.outputs))
                for module in modules
            ),
            float(tensors.get("loss", torch.tensor(math.nan))),
        )


def decompose(sums: CovarianceSums, dtype: torch.dtype = torch.float32) -> Eigenbasis:
    """Return the eigenbasis of A and S of every module.

    Args:
        sums: Over a sample of rows, or all of them.
        dtype: Of the eigenvectors, what is computed in later; the decomposition itself is float64.

    Raises:
        CurvatureError: No examples, a module that never ran, or a sum that isn't finite; the module is named.
    """
    if sums.examples == 0:
        raise CurvatureError("Kronecker factors need rows; there are none.")
    modules = []
    for module in sums.modules:
        if module.name not in sums.outputs or not sums.positions.get(module.name):
            raise CurvatureError(f"{module.name} saw no token and no gradient: it isn't part of the forward pass.")
        inputs = _side(sums.inputs[module.name], sums.positions[module.name], f"the inputs of {module.name}", dtype)
        outputs = _side(sums.outputs[module.name], sums.examples, f"the output gradients of {module.name}", dtype)
        modules.append(ModuleBasis(module.name, inputs, outputs))
    return Eigenbasis(tuple(modules), sums.losses / sums.examples)


def _side(blocks: Sequence[Tensor], count: int, label: str, dtype: torch.dtype) -> Side:
    vectors, values = [], []
    for block in blocks:
        matrix = block.double().cpu() / count
        if not bool(torch.isfinite(matrix).all()):
            raise CurvatureError(
                f"The covariance of {label} is not finite: an activation or a gradient overflowed. Look for inf or NaN "
                "in the model's weights and outputs; float16 overflows where bfloat16 and float32 don't."
            )
        eigenvalues, basis = torch.linalg.eigh((matrix + matrix.T) / 2)
        values.append(eigenvalues.clamp(min=0))
        # LAPACK returns columns side by side; the same numbers in another order multiply with other roundings.
        vectors.append(_signed(basis).to(dtype).contiguous())
    return Side(tuple(vectors), torch.cat(values))


def _signed(basis: Tensor) -> Tensor:
    """Turn every eigenvector, a column, so that its largest entry is positive: a solver may return either."""
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -basis, basis)


@dataclass(frozen=True)
class KroneckerCurvature:
    """(H + λ) of every module in its Kronecker eigenbasis: K-FAC's or EK-FAC's eigenvalues.

    Attributes:
        basis: Q_A and Q_S of each module.
        eigenvalues: Λ of each module, [O, I], float64.
        dampings: λ of each module.
    """

    basis: Eigenbasis
    eigenvalues: tuple[Tensor, ...]
    dampings: tuple[float, ...]

    @classmethod
    def prepare(
        cls, basis: Eigenbasis, eigenvalues: Sequence[Tensor], damping: Damping, budget: float | None = None
    ) -> Self:
        """Put eigenvalues and damping on a basis.

        Args:
            basis: Of every module.
            eigenvalues: Λ of each module, [O, I], in the order of the basis.
            damping: λ, of whichever kind.
            budget: What a bounded damping is held to: N times the mean loss of a row, in nats.

        Raises:
            CurvatureError: Eigenvalues that aren't finite, or that are singular without damping; the module is named.
        """
        values, dampings = [spectrum.double() for spectrum in eigenvalues], []
        for module, spectrum in zip(basis.modules, values, strict=True):
            if not bool(torch.isfinite(spectrum).all()):
                raise CurvatureError(f"The eigenvalues of {module.name} are not finite: a gradient overflowed.")
        damping = damping.within(values, budget)
        for module, spectrum in zip(basis.modules, values, strict=True):
            damp = damping.resolve(spectrum)
            if damp == 0 and float(spectrum.min()) <= float(spectrum.max()) * 1e-14:
                raise CurvatureError(
                    f"The curvature of {module.name} is singular and the damping is 0: set a damping above 0, or fit "
                    "it to more rows."
                )
            dampings.append(damp)
        return cls(basis, tuple(values), tuple(dampings))

    def apply(self, number: int, gradients: Tensor, power: float = -1.0) -> Tensor:
        """Return (H + λ)^power G of one module, the `number`-th, for gradients [..., O, I]; same shape and dtype."""
        module = self.basis.modules[number]
        scale = ((self.eigenvalues[number] + self.dampings[number]) ** power).to(gradients.device)
        vectors = module.inputs.vectors[0].dtype
        rotated = module.rotate(gradients.to(vectors)) * scale.to(vectors)
        return module.rotate_back(rotated).to(gradients.dtype)

    def spectra(self) -> Iterator[Spectrum]:
        """Yield each module's spectrum; the share of the trace under λ says how much the damping decides."""
        for module, values, damping in zip(self.basis.modules, self.eigenvalues, self.dampings, strict=True):
            yield spectrum_of(module.name, values.flatten(), damping)


def kfac_eigenvalues(basis: Eigenbasis) -> tuple[Tensor, ...]:
    """Return K-FAC's eigenvalues, Λ = λ_S λ_Aᵀ of each module, [O, I], float64."""
    return tuple(torch.outer(module.outputs.values, module.inputs.values) for module in basis.modules)


def preconditioned(gradients: ND, modules: Sequence[ModuleColumns], curvature: KroneckerCurvature) -> list[Tensor]:
    """Put (H + λ)⁻¹ u in the place of queries' whole gradients u = −∇m, and return it module by module.

    In place, because queries' whole gradients may be the largest thing in memory.

    Args:
        gradients: [m, D], unprojected: the modules' blocks are whole weight gradients. Overwritten.
        modules: Their columns, in the order of the curvature's.
        curvature: K-FAC's or EK-FAC's.

    Returns:
        For each module [m, O, I], a view of its columns.
    """
    matrices = []
    for number, module in enumerate(modules):
        block = gradients[:, module.start : module.stop].unflatten(1, (module.q, module.p))
        for query in block:
            query.copy_(curvature.apply(number, query))
        matrices.append(block)
    return matrices
