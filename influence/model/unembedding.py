"""The unembedding: the layer of a language model that turns hidden states into logits, and whether it alone does.

A model may scale or cap what its unembedding returns (Gemma's `final_logit_softcapping`, Cohere's `logit_scale`), add a
bias to it, or scale what goes in. Near initialisation such an operation changes the numbers by less than rounding does
and at a later checkpoint by everything, so it is looked for among the operations of a forward pass, never in numbers
alone.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = (
    *(torch.ops.aten._to_copy.default, torch.ops.aten.clone.default, torch.ops.aten.detach.default),
    *(torch.ops.aten.alias.default, torch.ops.aten.slice.Tensor, torch.ops.aten.view.default),
    *(torch.ops.aten._unsafe_view.default, torch.ops.aten.expand.default),
)
"""Operations whose result, where it has the shape of what goes in, has its numbers in their order, too."""


def unembedding(model: Any) -> nn.Module | None:
    """Return a model's unembedding, one of its own modules; None for a model that has none or doesn't name it."""
    if not hasattr(model, "get_output_embeddings"):
        return None
    try:
        return model.get_output_embeddings()
    except NotImplementedError:
        return None


def split_head(model: Any) -> tuple[Any, Any]:
    """Return a causal LM's body (ids → last hidden state) and its unembedding; (None, None) if they can't be told.

    Virtual tokens of an adapter (prompt and prefix tuning) are added by its wrapper, before the body: such a model runs
    whole.
    """
    if any(getattr(config, "is_prompt_learning", False) for config in getattr(model, "peft_config", {}).values()):
        return None, None
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = unembedding(inner)
    body = getattr(inner, "base_model", None)
    if head is None or body is None or body is inner or not hasattr(head, "weight"):
        return None, None
    return body, head


def logits_are_the_heads(model: Any, body: Any, head: Any, ids: Tensor) -> bool:
    """Whether a model's logits are head(body(ids)), the unembedding of the last hidden state and nothing else.

    Args:
        model: The language model.
        body: What `split_head` returned.
        head: Likewise.
        ids: [N, S], a few tokens to run the model on.

    Returns:
        True where the forward pass hands the body's last hidden state to the unembedding, once, and the unembedding's
        output to the caller, with nothing but casts to a wider dtype and moves between devices on the way; and where
        the body called with `ids` alone gives what the model gave the unembedding.
    """
    if type(head) is not nn.Linear:
        return False
    with torch.no_grad(), _Copies() as from_body, _Copies() as from_head:
        received: list[Tensor] = []

        def after_body(module: nn.Module, args: Any, output: Any) -> None:
            last = getattr(output, "last_hidden_state", None)
            from_body.follow(output[0] if last is None and isinstance(output, tuple) else last)

        def after_head(module: nn.Module, args: Any, output: Tensor) -> None:
            received.append(args[0] if args and from_body.has(args[0]) else output.new_empty(0))
            from_head.follow(output)

        # OPT calls its body's decoder past the body, which hands on what the decoder returns.
        inside = [child for child in body.children() if hasattr(child, "get_input_embeddings")]
        handles = [module.register_forward_hook(after_body) for module in (body, *inside)]
        handles.append(head.register_forward_hook(after_head))
        try:
            logits = model(input_ids=ids, use_cache=False).logits
            if len(received) != 1 or not received[0].numel() or not from_head.has(logits):
                return False
            own = body(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        head_input = received[0]
        if not from_body.has(own) or own.shape != head_input.shape:
            return False
        return bool((own.to(head_input.device) - head_input).abs().max() <= 1e-3 * head_input.float().std())


class _Copies(TorchDispatchMode):
    """Follows tensors through operations that leave their numbers as they are."""

    def __init__(self) -> None:
        super().__init__()
        self._followed: list[Tensor] = []

    def __enter__(self) -> Self:
        return super().__enter__()

    def follow(self, tensor: Tensor | None) -> None:
        """Follow a tensor from here on."""
        if tensor is not None:
            self._followed.append(tensor)

    def has(self, tensor: Any) -> bool:
        """Whether a tensor is one of those followed or a copy, and was not changed in place since."""
        return any(tensor is followed and followed._version == 0 for followed in self._followed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in COPIES and isinstance(result, Tensor) and self.has(args[0]):
            same = result.shape == args[0].shape and result.dtype.itemsize >= args[0].dtype.itemsize
            if same:
                self.follow(result)
        return result
