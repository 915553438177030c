"""Evaluation mode for as long as gradients are taken: dropout makes them random, batch norm mixes examples."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

log = logging.getLogger(__name__)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give every module its own flag back; a warning says so where it changes any.

    transformers checkpoints activations only in blocks whose flag says training, so a block that checkpoints keeps its
    flag where the model as a whole is in evaluation mode, as `model.gradient_checkpointing` sets it. Whoever sets it
    must have switched off the dropout that a block applies itself.
    """
    training = [
        module
        for module in model.modules()
        if module.training and (model.training or not getattr(module, "gradient_checkpointing", False))
    ]
    if training:
        log.warning(
            "%s is in training mode, in which dropout makes gradients random: they are taken in evaluation mode, and "
            "it gets its mode back afterwards.",
            type(model).__name__,
        )
    with untrained(training):
        yield


@contextmanager
def untrained(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Switch off the training flag of modules that have it set, and on again."""
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
