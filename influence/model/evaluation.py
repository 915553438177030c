"""Evaluation mode for as long as gradients are taken: dropout makes them random, batch norm mixes examples."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from influence.errors import ModelError

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


def check_rescaling(model: nn.Module) -> None:
    """Refuse a model that divides its own weights in evaluation mode, as RWKV does after its first six blocks.

    Its outputs stay the same, but the gradients are those of other weights than were trained: those of later blocks are
    2, 4, … times as long.

    Raises:
        ModelError: It does.
    """
    for module in model.modules():
        if not hasattr(module, "layers_are_rescaled"):
            continue
        config = getattr(module, "config", None)
        period, blocks = (int(getattr(config, name, 0) or 0) for name in ("rescale_every", "num_hidden_layers"))
        if 0 < period < blocks:
            raise ModelError(
                f"{type(module).__name__} divides the weights of its blocks after the first {period} (of {blocks}) by "
                "powers of 2 in evaluation mode, so that their gradients are not those of the weights that were "
                "trained. Expected a model without this: set rescale_every: 0 in its config.json."
            )


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
