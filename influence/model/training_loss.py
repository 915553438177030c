"""The loss that a model computes of itself when it is given labels: what it was trained with.

transformers' models bring their training loss along. What is differentiated must be that loss, so the two are compared
on a few tokens: a permutation language model, labels that are not shifted, smoothed labels or a loss that the
configuration names are noticed so. What a trainer computes outside the model (label smoothing, class weights) isn't
seen.
"""

import inspect
import logging
from typing import Any

import torch
from torch import Tensor

from influence.errors import TaskError
from influence.model.quiet import quiet

log = logging.getLogger(__name__)

NEAR = {torch.float64: 1e-6, torch.float32: 1e-4}
"""How far two computations of one loss may be apart, relative; 2e-2 in narrower dtypes."""


def check_training_loss(model: Any, loss: float, **inputs: Tensor) -> None:
    """Compare the loss of a task with the model's own.

    Nothing is compared where the model computes no loss from `labels`. The auxiliary loss of a router is not part of
    the comparison: see `report_router_loss`.

    Args:
        model: The model.
        loss: The task's, a mean over what is scored.
        inputs: What the model is called with, `labels` among them.

    Raises:
        TaskError: They differ.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(inner.forward).parameters
    if "labels" not in accepted:
        return
    plain = {"output_router_logits": False} if "output_router_logits" in accepted else {}
    config, before = inner.config, getattr(inner.config, "problem_type", None)
    try:
        with torch.no_grad(), quiet():
            own = getattr(model(**inputs, **plain), "loss", None)
    except Exception as error:  # A model's own loss may need more than labels; then there is none to compare with.
        log.debug("%s computes no loss from labels: %s", type(inner).__name__, error)
        return
    finally:
        # transformers writes into the configuration which loss it chose.
        if hasattr(config, "problem_type"):
            config.problem_type = before
    if not isinstance(own, Tensor) or own.ndim:
        return
    near = NEAR.get(next(model.parameters()).dtype, 2e-2)
    if abs(float(own) - loss) > near * max(1.0, abs(loss)):
        raise TaskError(
            f"{type(inner).__name__} was trained with another loss: on a short text its own is {float(own):.5g}, and "
            f"softmax cross-entropy, which is what would be differentiated, {loss:.5g}. Influence on another loss than "
            "the model's says nothing of its training; such models aren't supported."
        )


def report_router_loss(model: Any) -> None:
    """Warn where a model was trained with a loss of its router, too, which isn't differentiated."""
    config = getattr(model, "config", None)
    if getattr(config, "output_router_logits", False):
        log.warning(
            "%s was trained with an auxiliary loss of its router (router_aux_loss_coef %s). It depends on whole "
            "batches and is not part of an example's loss: gradients are of the language-modelling loss alone.",
            type(model).__name__,
            getattr(config, "router_aux_loss_coef", "unknown"),
        )
