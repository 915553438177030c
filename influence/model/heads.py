"""Which heads a task can differentiate: those whose training loss is a softmax cross-entropy over the logits."""

from typing import Any, Literal

ENCODER_DECODER = (
    "Encoder-decoder models aren't supported as language models: their loss is that of a target text given a source "
    "text. Take a decoder-only model (GPT-2, Llama, …)."
)
SOFTMAX = "single_label_classification"


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model generates its text from another text's encoding (T5, BART)."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def unsupported_head(config: Any, labels: int | None = None) -> str | None:
    """Return what a classifier's configuration says that isn't supported, as a sentence; None where all is.

    Args:
        config: The model's.
        labels: How many outputs the head has, where the configuration doesn't know (an adapter's head).
    """
    outputs = labels or getattr(config, "num_labels", None)
    kind = getattr(config, "problem_type", None)
    if outputs == 1:
        return (
            "A regression head (num_labels 1) isn't supported: scores are about the log-probability of a class, of "
            "which it has none. Supported are classifiers with two or more classes, one a row."
        )
    if kind not in (None, SOFTMAX):
        return (
            f"A head with problem_type {kind!r} isn't supported: the model was trained with another loss than softmax "
            f"cross-entropy over its {outputs} outputs. If it was trained with one class a row, set problem_type to "
            f"{SOFTMAX!r} in its config.json."
        )
    return _class_names(config)


def _class_names(config: Any) -> str | None:
    """Return that a configuration gives one class two numbers, as a sentence; None where it doesn't."""
    numbers = getattr(config, "label2id", None) or {}
    for number, name in (getattr(config, "id2label", None) or {}).items():
        other = numbers.get(name, number)
        if int(other) != int(number):
            return (
                f"Its config.json names the classes in two orders: id2label has {number} {name!r}, and label2id has "
                f"{other} {name!r}. A label by name would be another class in each: write both in the order that the "
                "model was trained with."
            )
    return None


def unsupported_model(config: Any, kind: Literal["causal_lm", "sequence_classification"], labels: int | None) -> str:
    """Return why a model of a configuration can't be of a kind, as a sentence; empty where it can."""
    if kind == "sequence_classification":
        return unsupported_head(config, labels) or ""
    return ENCODER_DECODER if getattr(config, "is_encoder_decoder", False) else ""
