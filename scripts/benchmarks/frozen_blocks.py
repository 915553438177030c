"""The last blocks of a causal language model as a model of their own, for trials that train nothing below them.

The blocks below are run once a row. Their outputs become rows of an embedding's table, and a token's number its place
in that table, so that everything that takes token numbers works on the last blocks alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from influence.data.tokenise import NOT_SCORED, Part


def last_blocks(whole: Any, layers: int) -> Any:
    """Return a model of the last blocks, which it shares with the whole; only their linear layers require gradients."""
    changed = {"num_hidden_layers": layers, "tie_word_embeddings": False, "vocab_size": 16}
    tail: Any = LlamaForCausalLM(LlamaConfig(**{**whole.config.to_dict(), **changed})).eval()
    whole.requires_grad_(False)
    tail.requires_grad_(False)
    tail.model.layers = whole.model.layers[-layers:]
    for linear in (module for module in tail.model.layers.modules() if isinstance(module, nn.Linear)):
        linear.requires_grad_(True)
    tail.model.norm, tail.lm_head = whole.model.norm, nn.Linear(*whole.lm_head.weight.shape[::-1], bias=False)
    tail.lm_head.weight = nn.Parameter(whole.lm_head.weight.detach(), requires_grad=False)
    return tail


def append_rows(whole: Any, tail: Any, tokens: Sequence[Sequence[int]], prompts: Sequence[int]) -> list[Part]:
    """Run the blocks below on rows, add what they return to the table of `tail`, and return the rows as parts.

    Args:
        whole: The model.
        tail: Its `last_blocks`.
        tokens: Of each row.
        prompts: How many of each row's first tokens aren't scored.
    """
    place, layers = len(tail.model.embed_tokens.weight), len(tail.model.layers)
    states, found = [tail.model.embed_tokens.weight], []
    for position, (each, prompt) in enumerate(zip(tokens, prompts, strict=True)):
        with torch.no_grad():
            outputs = whole.model(torch.tensor([each]), output_hidden_states=True, use_cache=False)
            states.append(outputs.hidden_states[-1 - layers][0])
        labels = np.asarray(each, np.int32).copy()
        labels[:prompt] = NOT_SCORED
        found.append(Part(position, np.arange(place, place + len(each), dtype=np.int32), labels))
        place += len(each)
    tail.model.embed_tokens = nn.Embedding.from_pretrained(torch.cat(states), freeze=True)
    return found
