"""How many tokens a model can be given at once: the rows of its position tables, or what its configuration says.

RoBERTa and its kin count positions from the number of the padding token, OPT and BART from 2, so that a table has more
rows than there are positions.
"""

from typing import Any

from torch import nn

TABLES = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe")
"""What transformers calls tables of absolute positions."""
SETTINGS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the number of positions; values under 1 stand for no limit."""


def max_positions(model: Any) -> int | None:
    """Return the most tokens a model can be given, less the virtual tokens of its adapters; None where nothing limits.

    Args:
        model: A language model or classifier, with or without adapters.
    """
    limits = [*_of_configuration(model), *_of_tables(model)]
    virtual = [
        getattr(config, "num_virtual_tokens", None) or 0 for config in getattr(model, "peft_config", {}).values()
    ]
    return min(limits) - max(virtual, default=0) if limits else None


def _of_configuration(model: Any) -> list[int]:
    config = getattr(model, "config", None)
    text: Any = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    limits = [getattr(text, name, None) for name in SETTINGS]
    return [limit for limit in limits if isinstance(limit, int) and limit > 0]


def _of_tables(model: nn.Module) -> list[int]:
    """The usable rows of every table of positions."""
    usable = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or name.rpartition(".")[2] not in TABLES:
            continue
        # Only where positions are counted from the padding token is a plain table told of it.
        counted = type(module) is nn.Embedding and module.padding_idx is not None
        first: Any = (module.padding_idx or 0) + 1 if counted else getattr(module, "offset", 0)
        usable.append(module.num_embeddings - first)
    return usable
