"""What a row's gradient may not depend on: padding, the batch, the other tokens of the row."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from influence.capture.probe import silent_modules
from influence.data.batch import cut_batches
from influence.data.example import Example, place_of
from influence.data.tokenise import NOT_SCORED
from influence.doctor.check import Check, compared
from influence.doctor.subject import Subject
from influence.errors import ModelError

TOKENS = 16
"""Scored tokens that are captured one by one."""


def gradients(subject: Subject, examples: Sequence[Example], alone: Tensor) -> Iterator[Check]:
    """Every row's gradient is nonzero and finite, and each tracked layer has a part in some row's. Or hidden states."""
    lengths = torch.linalg.vector_norm(alone.double(), dim=1)
    bad = [
        place_of(example)
        for example, norm in zip(examples, lengths.tolist(), strict=True)
        if not 0 < norm < float("inf")
    ]
    represented = subject.session.spec.baseline is not None
    yield Check(
        "hidden states" if represented else "gradients",
        "fail" if bad else "pass",
        f"{len(bad)} of {len(examples)} rows zero or not finite: {'; '.join(bad[:3])}"
        if bad
        else f"{len(examples)} rows, lengths {float(lengths.min()):.3g} to {float(lengths.max()):.3g}",
        "nonzero and finite",
        "Zero: are the tracked layers part of the forward pass (model.layers)? Not finite: float16 overflows where "
        "bfloat16 or float32 would not (model.dtype).",
    )
    if represented:
        return
    silent = silent_modules(alone, subject.capture.modules)
    named = ", ".join(silent[:5]) + (", …" if len(silent) > 5 else "")
    yield Check(
        "layers",
        "note" if silent else "pass",
        f"{len(silent)} of {len(subject.capture.modules)} tracked layers have a zero gradient on every row: {named}"
        if silent
        else f"{len(subject.capture.modules)} tracked layers",
        "a nonzero gradient in each",
        "They do not distinguish rows: exclude them with model.layers.exclude. (An untrained adapter's A is one.)",
        value=float(len(silent)),
        limit=0.0,
    )


def padding(subject: Subject, examples: Sequence[Example], alone: Tensor) -> Check:
    """Some columns of padding after a row change nothing."""
    most = subject.session.longest or sys.maxsize
    extras = [min(8, most - len(part.input_ids)) for part in subject.parts]
    if not any(extras):
        return Check("padding", "note", f"every row fills the model's {most} positions", "shorter rows, to be padded")
    padded = [subject.rows([part], extra) for part, extra in zip(subject.parts, extras, strict=True)]
    return compared(
        "padding",
        torch.cat(padded),
        alone,
        subject.tolerance,
        examples,
        "Padding changes the model's result, so a row would depend on its neighbours' lengths. Set "
        "cluster.token_budget to 2: then every row is computed alone, without padding. Or try model.attention: eager.",
    )


def batches(subject: Subject, examples: Sequence[Example], alone: Tensor) -> Check:
    """A row in a batch of others is the row alone."""
    lengths = [len(part.input_ids) for part in subject.parts]
    budget = max(subject.session.token_budget, 2 * max(lengths))
    together = torch.empty_like(alone)
    try:
        for group in cut_batches(lengths, budget):
            together[group] = subject.rows([subject.parts[index] for index in group])
    except ModelError as refused:
        return Check("batches", "fail", "layers that can't be split by example", "", str(refused))
    return compared(
        "batches",
        together,
        alone,
        subject.tolerance,
        examples,
        "A row depends on its batch: a layer that mixes examples (batch norm, a router with a "
        "capacity) can't be analysed by row. Set cluster.token_budget to 2: then every row is computed alone.",
    )


def token_sum(subject: Subject, examples: Sequence[Example]) -> Check:
    """The scored tokens of the shortest row, each captured alone, add up to it."""
    if subject.session.spec.model.kind != "causal_lm":
        return Check("sum over tokens", "note", "does not apply: a classifier's loss is not a sum over tokens")
    index = min(range(len(subject.parts)), key=lambda index: len(subject.parts[index].input_ids))
    part = subject.parts[index]
    places = (part.labels != NOT_SCORED).nonzero()[0][:TOKENS]
    singles = []
    for kept in (places, *places[:, None]):
        labels = part.labels.copy()
        labels[:] = NOT_SCORED
        labels[kept] = part.labels[kept]
        singles.append(replace(part, labels=labels))
    whole, tokens = subject.rows(singles[:1]), torch.cat([subject.rows([single]) for single in singles[1:]])
    if subject.session.spec.task.reduction == "mean":
        tokens = tokens / len(places)
    return compared(
        f"sum over {len(places)} tokens",
        tokens.sum(dim=0, keepdim=True),
        whole,
        subject.tolerance,
        [examples[index]],
        "A row's gradient isn't the sum of its tokens' gradients: the model's loss is not a plain sum "
        "over tokens. Please report the model's class.",
    )
