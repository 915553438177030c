"""Activations of a model's blocks that are computed again in the backward pass: less memory, more time."""

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from influence.errors import ModelError


def recompute_blocks(model: Any) -> None:
    """Turn on activation checkpointing in eval mode, where no dropout is active.

    Raises:
        ModelError: No block of it can be.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ModelError(
            f"{type(model).__name__} has no blocks that can be checkpointed: leave model.gradient_checkpointing off."
        )
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    for block in blocks:
        # transformers checkpoints a block only while the block's own flag says training; its children stay in eval
        # mode. Some blocks (OPT, BART) apply dropout themselves, by a plain number.
        block.training = True
        for name, value in vars(block).items():
            if "drop" in name and isinstance(value, float):
                setattr(block, name, 0.0)
