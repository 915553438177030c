"""What memory a worker needs, said before it starts, beside what its job or this machine has to give."""

import logging
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from influence.axes import ModuleColumns
from influence.capture.cut import Estimate, estimate, held_bytes, rows_per_shard
from influence.config import RunConfig
from influence.engine.cluster import workers_wanted
from influence.model.adapter import base_folder
from influence.model.folder import is_adapter, locate, weight_files
from influence.model.load import ModelSettings

log = logging.getLogger(__name__)

PROCESS = 600_000_000
"""Bytes of a worker that has loaded Python, torch and transformers and no model yet: 540 MB were measured."""


def estimate_of(config: RunConfig, rows: int, modules: Sequence[ModuleColumns], model_bytes: int) -> Estimate:
    """Work out what a run takes, from its configuration, its number of rows and the columns of a row."""
    held = held_bytes(config.store, modules, len(config.recipe.checkpoints))
    kinds: dict[str, Any] = {"curvature": config.recipe.stored.curvature.kind, "index": config.index}
    kinds |= {"codec": config.store, "recipe": config.recipe, "model_bytes": model_bytes}
    return estimate(rows, modules, rows_per_shard(rows, held, config.store), **kinds)


def worker_bytes(need: Estimate) -> int:
    """Return what a worker holds at the most, its activations apart: stages follow one another under one model."""
    return PROCESS + need.memory_model + max(need.memory_capture, need.memory_factors, need.memory_curvature)


def weights_on_disk(settings: ModelSettings) -> int:
    """Return the bytes of a model's weight files, adapters with the model beneath them."""
    folder = locate(settings.path, settings.revision)
    folders = [folder, base_folder(folder)] if is_adapter(folder) else [folder]
    return sum(file.stat().st_size for each in folders for file in weight_files(each))


def tell_memory(config: RunConfig, rows: int, modules: Sequence[ModuleColumns] | None, tasks: int) -> None:
    """Log what a worker needs and what it gets; warn where that is too little.

    Args:
        config: The run.
        rows: Of the data set.
        modules: The tracked layers and their columns; None before a model was looked at, when only its weights count.
        tasks: Tasks there are to do, which limit the workers.
    """
    weights = weights_on_disk(config.model)
    if modules is None:
        need, made_of = PROCESS + weights, f"{_size(weights)} of weights on disk; plus rows and activations"
    else:
        need = worker_bytes(estimate_of(config, rows, modules, weights))
        made_of = f"{_size(weights)} of weights on disk, rows and sums; plus activations"
    if config.model.device_map is not None:
        _tell_gpus(config, weights)
    given, gives, remedy = _given(config, tasks)
    log.info("A worker needs at least %s of memory (%s). %s", _size(need), made_of, gives)
    if given is not None and given < need and config.cluster.device != "cuda":
        log.warning("That is too little: %s", remedy)


def _tell_gpus(config: RunConfig, weights: int) -> None:
    """Log what the GPUs hold that one worker's model is spread over; nobody knows of those of a queue's jobs."""
    cluster = config.cluster
    if cluster.queued:
        log.info("A job's worker spreads the model over the job's GPUs (cluster.job.gpus: %d).", cluster.job.gpus)
        return
    if not cluster.here or cluster.device == "cpu" or not torch.cuda.is_available():
        return
    found = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    log.info(
        "One worker spreads %s of weights over %d GPUs with %s together; plus rows and activations.",
        _size(weights),
        len(found),
        _size(sum(found)),
    )
    if sum(found) < weights:
        log.warning("That is too little, unless the files hold wider numbers than model.dtype.")


def _given(config: RunConfig, tasks: int) -> tuple[int | None, str, str]:
    """Return the bytes that a worker has, None where nobody knows, that in words, and how to give it more."""
    cluster = config.cluster
    if cluster.queued:
        given = cluster.job.memory_bytes
        if given is None:
            return None, "A job has what the queue gives by default: cluster.job.memory is not set.", ""
        each = given // cluster.job.workers
        gives = f"cluster.job.memory gives {_size(each)} to each of a job's workers ({cluster.job.workers})."
        return each, gives, "raise cluster.job.memory, or lower cluster.job.workers or store.rows_per_shard."
    workers = workers_wanted(cluster, tasks)
    if workers is None:
        return None, "The memory of the scheduler's workers is not checked.", ""
    memory = psutil.virtual_memory().total
    gives = f"This machine has {_size(memory)} and {workers} of them."
    return memory // workers, gives, "lower cluster.workers or store.rows_per_shard."


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
