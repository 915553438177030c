"""Which index, where it lives, what it costs – and the only place that imports faiss."""

from importlib import import_module
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from index.errors import FaissMissing, GpuMissing

Device = Literal["cpu", "gpu"]


class IndexSettings(BaseModel):
    """The `index` section of a run file.

    Attributes:
        kind: `exact`: no index at all; every search reads the vectors where they lie, in one pass, and faiss isn't
            needed. `flat`, FAISS IndexFlatIP: every row in memory as float32, no approximation either.
        device: Where a flat index is searched. `gpu` needs faiss-gpu, a GPU, and the whole index in its memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["exact", "flat"] = "exact"
    device: Device = "cpu"

    @model_validator(mode="after")
    def _exact_runs_on_the_cpu(self) -> "IndexSettings":
        if self.kind == "exact" and self.device == "gpu":
            raise ValueError("kind: exact scans the stored rows on the CPU; for a GPU set kind: flat")
        return self


def bytes_needed(settings: IndexSettings, rows: int, dims: int) -> int:
    """Return the bytes of memory (and of disk) that the index takes: 4 · rows · dims for `flat`, none for `exact`.

    With `device: gpu` the same number is needed once in main memory, while building or loading, and once on the GPU.
    """
    return 4 * rows * dims if settings.kind == "flat" else 0


def load_faiss(device: Device = "cpu") -> Any:
    """Import faiss, able to serve the device.

    Raises:
        FaissMissing: It isn't installed, or doesn't load; the message names the extra to install.
        GpuMissing: `gpu` was asked for, and this faiss or this machine has none.
    """
    try:
        faiss = import_module("faiss")
    except ImportError as error:
        extra = "gpu" if device == "gpu" else "cpu"
        raise FaissMissing(
            f"The module faiss can't be imported ({error}); an index of kind: flat on the {device} needs it. "
            f"Install it with: pip install 'influence[{extra}]' – or set index.kind: exact, which needs none."
        ) from None
    if device == "gpu":
        if not hasattr(faiss, "StandardGpuResources"):
            raise GpuMissing(
                f"index.device is gpu, but the installed faiss {faiss.__version__} was built for the CPU only. "
                "Run: pip uninstall faiss-cpu && pip install 'influence[gpu]' – or set index.device: cpu."
            )
        if faiss.get_num_gpus() == 0:
            raise GpuMissing("index.device is gpu, but faiss finds no GPU on this machine. Set index.device: cpu.")
    return faiss


def to_device(flat: Any, device: Device) -> Any:
    """Copy a flat FAISS index from main memory to the first GPU; `cpu` returns it as it is.

    Raises:
        GpuMissing: There is no GPU to copy to.
    """
    if device == "cpu":
        return flat
    faiss = load_faiss("gpu")
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, flat)
