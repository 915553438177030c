"""The unembedding: the layer of a language model that turns hidden states into logits."""

from typing import Any

from torch import nn


def unembedding(model: Any) -> nn.Module | None:
    """Return a model's unembedding, one of its own modules; None for a model that has none or doesn't name it."""
    if not hasattr(model, "get_output_embeddings"):
        return None
    try:
        return model.get_output_embeddings()
    except NotImplementedError:
        return None
