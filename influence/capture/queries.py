"""Queries on their way to gradients: through the session that captures rows, whole and in a few batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.baselines.repsim import HiddenStates
from influence.capture.batches import Compute
from influence.capture.session import Session
from influence.capture.spec import TOKEN_BUDGET, CaptureSpec
from influence.data.example import Example, MessagesContent, TokenContent, place_of
from influence.data.tokenise import Part
from influence.errors import QueryError
from influence.gradients.capture import Capture
from influence.model.load import weight_count
from influence.task import measurement

TOKEN_SECONDS = 1e-10
"""What a token takes of one core for each of the model's weights: six floating-point operations, and what isn't one."""
BATCH_SECONDS = 0.03
"""What a batch takes besides."""
CHARACTERS = 3
"""Of a token, about."""


def query_seconds(spec: CaptureSpec, queries: Sequence[Example], *, cut: bool = False) -> float:
    """Return what capturing queries takes on one core, about: it is known before any is tokenised.

    Args:
        spec: Of the run.
        queries: With what they are asked against.
        cut: Whether long ones are cut as rows are.
    """
    if not queries:
        return 0.0
    against = (query.contrast for query in queries if query.contrast is not None)
    tokens = [_length(query) for query in (*queries, *against)]
    total = sum(min(spec.data.max_tokens, length) for length in tokens) if cut else sum(tokens)
    batches = 1 + total // (spec.token_budget or TOKEN_BUDGET["cpu"])
    return len(spec.checkpoints) * (total * weight_count(spec.model) * TOKEN_SECONDS + batches * BATCH_SECONDS)


def _length(query: Example) -> int:
    if isinstance(query.content, TokenContent):
        return len(query.content.input_ids)
    return 1 + len(query.text) // CHARACTERS


def query_gradients(
    session: Session, queries: Sequence[Example], whole: Capture | None = None, *, cut: bool = False
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Capture queries.

    Args:
        session: Of the run.
        queries: With what they are asked against, where they are.
        whole: Gives other gradients than the run's projected ones, such as unprojected ones.
        cut: Whether long queries are cut as rows are, instead of being refused beyond the model's positions.

    Returns:
        −∇m of every query, [m, D] float32 on the CPU, of several checkpoints side by side, or its mean last hidden
        state in a run of those; log p of what was said, [m] float64, in nats; and of what it is asked against, NaN
        where it isn't. The measurement m is the first (or its log-odds), or the difference; of several checkpoints
        log p is the mean.

    Raises:
        QueryError: A query has no scored token, or a label that means nothing; it is named.
        DataError: A query can't be tokenised, or is longer than the model has positions.
    """
    for query in queries:
        if query.label is not None and session.spec.model.kind == "causal_lm":
            raise QueryError(
                f"{place_of(query)} has a label ({query.label!r}), which only a classifier uses; this model "
                "is a causal language model. Remove the label, or give a prompt and a completion."
            )
    against = [number for number, query in enumerate(queries) if query.contrast is not None]
    examples = [*queries, *(query.contrast for query in queries if query.contrast is not None)]
    # A query that is split would be several, and what rows are split for is that nothing of them is lost.
    parts = session.tokenise(examples, whole=not (cut and session.spec.data.long_rows == "truncate"))
    for part in parts:
        if not part.scored:
            raise QueryError(
                f"{place_of(examples[part.position])} has no scored token: {_unscored(examples[part.position], part)}"
            )
    gradients, said = _captured(session, parts, [place_of(example) for example in examples], whole)
    count = len(queries)
    gradients[against] -= gradients[count:]
    instead = np.full(count, np.nan)
    instead[against] = said[count:]
    return gradients[:count], said[:count], instead


def _unscored(query: Example, part: Part) -> str:
    if part.lost:
        return f"it is cut to {len(part.input_ids)} tokens, as rows are, and what is scored begins later. Shorten it."
    if isinstance(query.content, MessagesContent):
        return "the assistant says nothing in it, or its turns have weight 0. End with a message of the assistant."
    if isinstance(query.content, TokenContent):
        return "its labels are −100 but for the first. Give the token numbers where tokens are scored."
    return (
        "its completion is empty, or it has no prompt and its completion is a single token. Give both, so that "
        "something is predicted."
    )


def _captured(
    session: Session, parts: Sequence[Part], names: Sequence[str], whole: Capture | None
) -> tuple[Tensor, np.ndarray]:
    """Return −∇m and log p of every query and of everything that one is asked against, over all checkpoints."""
    gradients, said = [], np.zeros(len(names))
    for number, files in enumerate(session.spec.checkpoints):
        session.load(number)
        chosen = whole or session.rows_capture
        found = torch.zeros(len(names), chosen.dims)
        for piece in session.run(_measured(session, chosen), parts, names, chosen):
            where = [part.position for part in piece.parts]
            found[where] = piece.rows.float()
            said[where] += files.share * piece.values.double().numpy()
        gradients.append(found)
    return gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=1), said


def _measured(session: Session, chosen: Capture | HiddenStates) -> Compute:
    """Return what gives −∇m, or the hidden states, and log p of a batch of queries."""
    kind, raw = session.spec.measurement, session.spec.gradient.sides == "rows"

    def negative(model: Any, batch: Any) -> Tensor:
        return -measurement(session.task, model, batch, kind)

    def compute(batch: Any) -> tuple[Tensor, Tensor]:
        if raw and isinstance(chosen, Capture):
            rows, values = chosen(negative, batch, raw=True)
        else:
            rows, values = chosen(negative, batch)
        if kind == "log_likelihood":
            return rows, -values
        with torch.no_grad():
            return rows, measurement(session.task, session.model, batch)

    return compute
