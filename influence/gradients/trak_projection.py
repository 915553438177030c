"""The dense projection of TRAK: the gradient of all tracked layers together, by the projectors of the `trak` package.

A row of `Capture` without projection, [D_full], the layers side by side in their order, becomes `row Π / √k` with Π
[D_full, k] of independent entries of variance 1. Π is trak's own and never divided; the √k here makes the inner product
of two rows an unbiased estimate of their gradients', as in every projection of this house.

`basic` is trak's BasicProjector, on a CPU or a GPU: it draws Π in blocks of columns, the block b of checkpoint c with
the seed s + 1,000·b + 100,000·c, and draws every block anew for every batch where there is more than one. `cuda` is its
CudaProjector, which needs `fast_jl`, or the chunked one where a batch is too wide for its 32-bit indices. **The numbers
depend on what they are drawn on**: a GPU's generator differs from a CPU's and counts its multiprocessors. So `record`
says what was drawn, and where, with a digest of a piece of Π: rows of two digests can't be compared.

Source: Park et al. 2023, "TRAK: Attributing model behavior at scale", section 3.2; `traker` 0.3.2.
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import psutil
import torch
from torch import Tensor

from influence.axes import ND, ModuleColumns
from influence.errors import MissingExtra, ProjectionError
from influence.gradients.projection import MOST_BLOCKS, ProjectionSettings

CUDA_ROWS = 32
"""Rows that trak's CUDA kernel takes at once."""
CUDA_MULTIPLE = 512
"""What the width of the CUDA kernel's projections is a multiple of."""
CUDA_INDICES = 2**32 - 1
"""The most numbers of a batch that the CUDA kernel can index."""
SIGNS = 3
"""Rows of Π whose signs make its digest."""


class TrakProjection:
    """Projects a batch's whole gradients; made once for a model and a checkpoint.

    Attributes:
        modules: The one block of columns that a row has: all modules, k columns.
        record: What was drawn and on what, to be kept beside the rows.
    """

    def __init__(
        self,
        settings: ProjectionSettings,
        modules: Sequence[ModuleColumns],
        checkpoint: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make the projector and push a few vectors through it.

        Args:
            settings: Of kind trak.
            modules: The columns of an unprojected row.
            checkpoint: Which of a recipe's checkpoints it is for, from 0.
            device: Where rows are projected.
            dtype: What is computed in: float32, or float64 for a float64 model.

        Raises:
            ProjectionError: Π doesn't fit into memory, the projector doesn't work on this device or at this width, or
                it returns zeros or non-finite values.
            MissingExtra: The CUDA projector is asked for, and `fast_jl` isn't installed.
        """
        assert settings.dims is not None, "settings of kind trak have dims"
        self._settings, self._widths = settings, {module.name: module.stop - module.start for module in modules}
        self._checkpoint, self._device, self._dtype = checkpoint, torch.device(device), dtype
        self.columns = modules[-1].stop
        self.dims = settings.dims
        shape = {"outputs": 1, "inputs": self.columns, "q": 1, "p": self.dims}
        self.modules = (ModuleColumns(name="all modules", **shape, start=0, stop=self.dims),)
        self._seeds: list[int] = []
        self._projector = self._basic() if settings.projector == "basic" else self._cuda()
        self.record: dict[str, Any] = {
            "projector": type(self._projector).__name__,
            "trak": version("traker"),
            "entries": settings.entries,
            "dims": self.dims,
            "seed": settings.seed,
            "checkpoint": checkpoint,
            "block_seeds": self._seeds,
            "dtype": str(dtype).removeprefix("torch."),
            "drawn_on": _drawn_on(self._device),
            "digest": self._probe(),
        }

    def __call__(self, rows: ND) -> ND:
        """Return whole gradients [N, D_full] as [N, k], in their dtype and on their device.

        Raises:
            ProjectionError: The rows have another width than the projector was made for.
        """
        if rows.shape[1] != self.columns:
            raise ProjectionError(
                f"These rows have {rows.shape[1]:,} columns, and the projector was created for {self.columns:,}."
            )
        rows_on_device = rows.to(self._device, self._dtype)
        if self._settings.projector == "basic":
            projected = self._projector.project(rows_on_device, model_id=self._checkpoint)
        else:
            projected = torch.cat([self._kernel(part.contiguous()) for part in rows_on_device.split(CUDA_ROWS)])
        return (projected / self.dims**0.5).to(rows.device, rows.dtype)

    def _kernel(self, rows: Tensor) -> Tensor:
        """Project at most `CUDA_ROWS` rows; the chunked projector wants them module by module."""
        chunked = hasattr(self._projector, "projector_per_chunk")
        arguments = (
            dict(zip(self._widths, rows.split(list(self._widths.values()), dim=1), strict=True)) if chunked else rows
        )
        return self._projector.project(arguments, model_id=self._checkpoint).to(self._dtype)

    def _basic(self) -> Any:
        from trak.projectors import BasicProjector, ProjectionType

        block = min(self._settings.block, self.dims)
        need = self.columns * block * torch.finfo(self._dtype).bits // 8
        free = _free(self._device)
        if need > free:
            raise ProjectionError(
                f"trak's BasicProjector holds {self.columns:,} weights × {block} columns, {need / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free on {self._device}. Lower recipe.projection.block (to "
                f"{-(-self.dims // MOST_BLOCKS)} or more at this width), track fewer layers, or take projection kind "
                "kronecker."
            )
        projector = BasicProjector(
            grad_dim=self.columns,
            proj_dim=self.dims,
            seed=self._settings.seed,
            proj_type=ProjectionType(self._settings.entries),
            device=self._device,
            block_size=block,
            dtype=self._dtype,
            model_id=self._checkpoint,
        )
        self._seeds = list(projector.seeds)
        return projector

    def _cuda(self) -> Any:
        from trak import projectors

        _check_cuda(self._device, self._dtype, self.dims)
        chunks = _chunks(self._widths)
        self._seeds = [self._settings.seed + number for number in range(len(chunks))]
        try:
            pieces = [
                projectors.CudaProjector(
                    grad_dim=width,
                    proj_dim=self.dims,
                    seed=seed,
                    proj_type=projectors.ProjectionType(self._settings.entries),
                    device=self._device,
                    max_batch_size=CUDA_ROWS,
                )
                for seed, width in zip(self._seeds, chunks, strict=True)
            ]
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "trak's CudaProjector needs the package fast_jl, which compiles against your CUDA: pip install "
                "fast_jl, or set recipe.projection.projector to basic."
            ) from error
        if len(pieces) == 1:
            return pieces[0]
        return projectors.ChunkedCudaProjector(pieces, max(chunks), chunks, CUDA_ROWS, self._device, self._dtype)

    def _probe(self) -> str:
        """Push one-hot vectors and a random one through the projector, and return the digest of the former's signs."""
        vectors = torch.zeros(SIGNS + 1, self.columns, dtype=self._dtype)
        for number in range(SIGNS):
            vectors[number, number * (self.columns - 1) // (SIGNS - 1)] = 1
        vectors[SIGNS] = torch.randn(self.columns, generator=torch.Generator().manual_seed(0), dtype=self._dtype)
        sketches = self(vectors)
        if not bool(torch.isfinite(sketches).all()) or not bool(sketches.all()):
            zeros = int((sketches == 0).sum())
            raise ProjectionError(
                f"{type(self._projector).__name__} of trak returned {zeros} zeros and "
                f"{int((~torch.isfinite(sketches)).sum())} non-finite values of {sketches.numel()} for vectors whose "
                f"sketch has none ({self.columns:,} to {self.dims} on {_drawn_on(self._device)}). Set "
                "recipe.projection.projector to basic, or projection.kind to kronecker."
            )
        return hashlib.sha256((sketches[:SIGNS] > 0).numpy().tobytes()).hexdigest()[:16]


def _check_cuda(device: torch.device, dtype: torch.dtype, dims: int) -> None:
    if device.type != "cuda" or dtype != torch.float32 or dims % CUDA_MULTIPLE:
        raise ProjectionError(
            f"trak's CudaProjector works on a GPU, in float32, at widths that are multiples of {CUDA_MULTIPLE}; this "
            f"is {device.type}, {dtype}, {dims}. Set recipe.projection.projector to basic."
        )


def _chunks(widths: dict[str, int]) -> list[int]:
    """Return how many columns each CUDA projector takes: whole modules, as many as 32-bit indices reach."""
    most = CUDA_INDICES // CUDA_ROWS
    chunks: list[int] = []
    for name, width in widths.items():
        if width > most:
            raise ProjectionError(f"{name} has {width:,} weights, and trak's CudaProjector takes {most:,} at most.")
        if not chunks or chunks[-1] + width > most:
            chunks.append(0)
        chunks[-1] += width
    return chunks


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _drawn_on(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.multi_processor_count} multiprocessors"
