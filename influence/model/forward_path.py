"""How a causal language model's log-likelihoods are computed: in chunks from hidden states, or from its own logits.

What decides is the structure of the model, and it is looked at again whenever a weight was changed in place or loaded,
or the configuration is another: a task is used for several checkpoints of one model.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import TaskError
from influence.model.heads import ENCODER_DECODER, is_encoder_decoder
from influence.model.training_loss import check_training_loss
from influence.model.unembedding import logits_are_the_heads, split_head
from influence.model.weights_state import PerState

log = logging.getLogger(__name__)

PROBED = 8
"""Tokens that a model is looked at with."""


@dataclass(frozen=True)
class ForwardPath:
    """What may be left out of a forward pass of a causal language model.

    Attributes:
        body: Ids → last hidden state, where the logits are its unembedding's alone; else None.
        head: That unembedding; None likewise.
        causal: Whether a token leaves the positions before it unchanged, so that padding on the right needs no mask.
    """

    body: Any
    head: Any
    causal: bool


def forward_path(model: Any) -> ForwardPath:
    """Return a model's path, computed anew where its weights or configuration changed.

    Raises:
        TaskError: It is an encoder-decoder, has no logits or embeddings, or was trained with another loss.
    """
    return _path(model)


def attends_backwards(model: nn.Module) -> bool:
    """Whether every attention layer says that it is causal.

    transformers' layers do (`is_causal`, which a bidirectional setting of a configuration turns off); models whose
    layers don't are given their masks.
    """
    return {module.is_causal for module in model.modules() if hasattr(module, "is_causal")} == {True}


def _find(model: Any) -> ForwardPath:
    if is_encoder_decoder(model):
        raise TaskError(f"{type(model).__name__} is an encoder-decoder. {ENCODER_DECODER}")
    table = model.get_input_embeddings().weight
    ids = torch.arange(1, PROBED + 1, device=table.device)[None] % table.shape[0]
    logits = _logits(model, ids)
    check_training_loss(model, _mean_loss(logits, ids), input_ids=ids, labels=ids)
    body, head = split_head(model)
    plain = body is not None and logits_are_the_heads(model, body, head, ids)
    causal = attends_backwards(model) and _last_is_unseen(model, ids, logits)
    if not plain:
        log.info("%s: logits are not its unembedding's alone and are computed whole.", type(model).__name__)
    return ForwardPath(body if plain else None, head if plain else None, causal)


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = getattr(model(input_ids=ids, use_cache=False), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise TaskError(
            f"{type(model).__name__} returns no logits [N, S, V], so it is no language model. Give the model that was "
            "trained with its language-modelling head, or a task of your own."
        )
    return logits[:, -ids.shape[1] :]


def _mean_loss(logits: Tensor, ids: Tensor) -> float:
    """The loss of next-token prediction, a mean over the tokens."""
    wide = logits[:, :-1].double().flatten(0, 1)
    return float(nn.functional.cross_entropy(wide, ids[:, 1:].flatten().to(wide.device)))


def _last_is_unseen(model: Any, ids: Tensor, logits: Tensor) -> bool:
    """Whether another last token leaves the logits before it as they are, to rounding."""
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    near = 1e-3 * float(logits.float().std())
    return float((logits - _logits(model, other))[:, :-1].abs().max()) <= near


_path = PerState(_find)
