"""How likely a language model finds each row's answers after their own prompt, and after the prompts of other rows.

An answer is a run of scored tokens with more than one token before it, its prompt: a completion, or one of the
assistant's turns. Its loss without the prompt is the mean of its losses after the prompts of a few other rows of the
same block, which estimates −log p(answer) with no question known. A text that begins with the answer would be none of
those that the model was trained on, and its loss says more about that than about the answer.

All losses are in nats, summed over the tokens of all of a row's answers: the one that its prompt helps least is named
beside them, but would by itself make rows with many answers look worse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from influence.capture.batches import run_batches
from influence.capture.model_pass import model_pass
from influence.capture.session import Session
from influence.config import RunConfig
from influence.data.tokenise import NOT_SCORED, Part
from influence.engine.progress import Report
from influence.store.reader import Store

ANSWERS = "answers with and without their prompts"
OTHERS = 2
"""Other rows whose prompts an answer is read after: with one its loss is noisy, a third gains little."""
BLOCK = 1024
"""Answers that are tokens at a time."""
NAT = 1.0
"""Added to both losses where their ratio is taken: of an answer that is certain either way it says nothing."""


@dataclass(frozen=True)
class Answers:
    """What is found of b rows.

    Attributes:
        first: The first row.
        given: Loss after the row's own prompts, float64 [b]; NaN where a row has no answer, or no other row has one.
        without: Loss after other rows' prompts, float64 [b].
        number: Which of the row's answers its prompt helps least, from 1, int64 [b]; 0 where there is none.
        count: How many answers the row has, int64 [b].
    """

    first: int
    given: np.ndarray
    without: np.ndarray
    number: np.ndarray
    count: np.ndarray


def remaining(given: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return the share of answers' loss that their prompts leave: (given + 1 nat)/(without + 1 nat)."""
    return (given + NAT) / (without + NAT)


def prompt_losses(config: RunConfig, store: Store, folder: Path, report: Report | None = None) -> Iterator[Answers]:
    """Yield the answers of all rows in order, a block at a time; see `model_pass` for arguments and errors."""
    for first, found in model_pass(config, store, folder, ANSWERS, answers_of, report):
        yield Answers(first, *(found[name].numpy() for name in ("given", "without", "number", "count")))


@dataclass(frozen=True)
class Span:
    """An answer: the scored tokens from `start` to `stop` (exclusive) of a part of the row at `row` of the block."""

    row: int
    part: Part
    start: int
    stop: int

    def after(self, prompt: np.ndarray) -> Part:
        """Return the answer after a prompt, with nothing but the answer scored."""
        answer = self.part.input_ids[self.start : self.stop]
        labels = np.concatenate([np.full(len(prompt), NOT_SCORED, np.int32), answer])
        return Part(self.row, np.concatenate([prompt, answer]).astype(np.int32), labels.astype(np.int32))

    @property
    def prompt(self) -> np.ndarray:
        """What stands before it."""
        return self.part.input_ids[: self.start]


def answers_of(session: Session, parts: list[Part], count: int) -> dict[str, torch.Tensor]:
    """Return what is found of some rows, by the names of `Answers`."""
    spans = [span for part in session.contributing(parts) for span in answers_in(part)]
    rows = np.array([span.row for span in spans], dtype=np.int64)
    found = {
        "given": np.full(count, np.nan),
        "without": np.full(count, np.nan),
        "number": np.zeros(count, np.int64),
        "count": np.bincount(rows, minlength=count).astype(np.int64),
    }
    if len(set(rows.tolist())) > 1:
        given = _losses(session, spans, [span.prompt for span in spans])
        without = np.mean([_losses(session, spans, other_prompts(spans, turn)) for turn in range(OTHERS)], axis=0)
        there = found["count"] > 0
        for name, losses in (("given", given), ("without", without)):
            found[name][there] = np.bincount(rows, losses, minlength=count)[there]
        places = np.argsort(remaining(given, without), kind="stable")
        found["number"][rows[places]] = places - np.searchsorted(rows, rows[places]) + 1
    return {name: torch.from_numpy(values) for name, values in found.items()}


def answers_in(part: Part) -> list[Span]:
    """Return the answers of a part in their order; what continues a part before it has no prompt, and is none."""
    scored = np.concatenate([[False], part.labels != NOT_SCORED, [False]])
    edges = np.flatnonzero(scored[1:] != scored[:-1]).tolist()
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [Span(part.position, part, start, stop) for start, stop in pairs if start > 1]


def other_prompts(spans: Sequence[Span], turn: int) -> list[np.ndarray]:
    """Return for each answer the prompt of an answer of another row: the next in a shuffled order.

    Args:
        spans: Of two rows or more.
        turn: Another number gives other prompts.
    """
    order = np.random.Generator(np.random.Philox(key=turn)).permutation(len(spans)).tolist()
    found = [np.empty(0, np.int32)] * len(spans)
    for place, own in enumerate(order):
        step = 1
        while spans[order[(place + step) % len(order)]].row == spans[own].row:
            step += 1
        found[own] = spans[order[(place + step) % len(order)]].prompt
    return found


def _losses(session: Session, spans: Sequence[Span], prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Return −log p of each answer after a prompt, float64 [spans]; a prompt that is too long loses its beginning."""
    most = session.spec.data.max_tokens
    found = np.empty(len(spans))
    for first in range(0, len(spans), BLOCK):
        pairs = zip(spans[first : first + BLOCK], prompts[first : first + BLOCK], strict=True)
        rooms = ((span, prompt, max(1, most - (span.stop - span.start))) for span, prompt in pairs)
        parts = [span.after(prompt[max(0, len(prompt) - room) :]) for span, prompt, room in rooms]
        found[first : first + BLOCK] = _of_parts(session, parts)
    return found


def _of_parts(session: Session, parts: Sequence[Part]) -> np.ndarray:
    """Return −log p of each part's scored tokens, float64 [parts]."""

    def compute(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            losses = -session.task.measurement(session.model, batch)  # type: ignore[attr-defined]
            return losses.float()[:, None], torch.zeros(len(losses))

    numbered = [replace(part, position=number) for number, part in enumerate(parts)]
    names = [f"an answer of row {part.position} of the block" for part in parts]
    found = np.empty(len(parts))
    budget, pad, device = session.token_budget, session.pad, session.device
    for piece in run_batches(compute, numbered, names, width=1, budget=budget, pad=pad, device=device):
        found[[part.position for part in piece.parts]] = piece.rows[:, 0].double().cpu().numpy()
    return found


__all__ = ["Answers", "Span", "answers_in", "answers_of", "other_prompts", "prompt_losses", "remaining"]
