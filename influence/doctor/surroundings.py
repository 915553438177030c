"""What the capture would stand on: software, device, dtype, weights, room on the disk."""

import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from index.errors import VectorIndexError
from influence.capture.cut import estimate, held_bytes, rows_per_shard
from influence.capture.session import Session
from influence.config import RunConfig
from influence.data.dataset import Rows
from influence.doctor.check import Check
from influence.stages.index import check_index

PACKAGES = ("torch", "transformers", "datasets", "distributed", "faiss-cpu", "faiss-gpu-cu12", "peft")


def environment(config: RunConfig) -> Iterator[Check]:
    """What is installed, and whether the index can be built with it."""
    installed = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("software", "pass", f"Python {python}, {', '.join(installed)}")
    if config.recipe.baseline == "bm25":
        return
    try:
        check_index(config.index)
    except VectorIndexError as error:
        yield Check("index", "fail", "can't be built", f"kind {config.index.kind}", remedy=str(error))
    else:
        yield Check("index", "pass", f"{config.index.kind} on {config.index.device} can be built")


def whereabouts(config: RunConfig, session: Session, rows: Rows, place: Path | None) -> Iterator[Check]:
    """Where it computes, in what, and whether the run fits on the disk."""
    device = (
        f"{session.device_name}, {torch.get_num_threads()} threads"
        if session.device.type == "cpu"
        else session.device_name
    )
    yield Check("device", "pass", device, f"cluster.device {config.cluster.device}")
    yield Check("dtype", "pass", str(session.spec.model.dtype), f"model.dtype {config.model.dtype}")
    weights = list(session.model.parameters())
    largest = max(float(weight.detach().abs().max()) for weight in weights if weight.numel())
    count = sum(weight.numel() for weight in weights)
    yield Check("finite weights", "pass", f"{count:,} weights, the largest {largest:.3g}", "all finite", value=largest)
    if place is None:
        return
    kinds = {"curvature": config.recipe.stored.curvature.kind, "index": config.index}
    held = held_bytes(config.store, session.modules, len(config.recipe.checkpoints))
    per_shard = rows_per_shard(len(rows), held, config.store)
    sizes = {"codec": config.store, "recipe": config.recipe, **kinds}
    need = estimate(len(rows), session.modules, per_shard, **sizes).disk  # type: ignore[arg-type]
    free = shutil.disk_usage(next(folder for folder in (place, *place.absolute().parents) if folder.exists())).free
    yield Check(
        "free disk",
        "pass" if free > need else "fail",
        f"{free / 1e9:.3g} GB free",
        f"{need / 1e9:.3g} GB for {len(rows):,} rows of {session.dims:,} columns",
        "Build on another disk, lower recipe.projection.p and q, or set index.kind: exact, which keeps no second copy.",
        value=float(free),
        limit=float(need),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
