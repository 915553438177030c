"""What a run's classifier makes of its own rows: the probability of every class, by a pass over them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from influence.capture.batches import run_batches
from influence.capture.model_pass import model_pass
from influence.capture.session import Session
from influence.config import RunConfig
from influence.data.tokenise import Part
from influence.engine.progress import Report
from influence.store.reader import Store

PROBABILITIES = "probabilities"


def class_probabilities(
    config: RunConfig, store: Store, folder: Path, report: Report | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield first row, probabilities float32 [b, classes] and the labels' class numbers int64 [b] of all rows in order.

    Probabilities are NaN where a row has no token. See `model_pass` for arguments and errors.
    """
    for first, found in model_pass(config, store, folder, PROBABILITIES, probabilities_of, report):
        yield first, found["probabilities"].numpy(), found["classes"].numpy()


def probabilities_of(session: Session, parts: list[Part], count: int) -> dict[str, torch.Tensor]:
    """Return the probabilities of every class, float32 [count, classes], and the labels' class numbers [count]."""
    classes = int(session.model.config.num_labels)

    def compute(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            logits = session.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            return torch.softmax(logits.float(), dim=1), torch.zeros(len(logits))

    found = torch.full((count, classes), torch.nan)
    names = [f"row {position} of the block" for position in range(count)]
    used = session.contributing(parts)
    budget, pad, device = session.token_budget, session.pad, session.device
    for piece in run_batches(compute, used, names, width=classes, budget=budget, pad=pad, device=device):
        found[[part.position for part in piece.parts]] = piece.rows.float().cpu()
    return {"probabilities": found, "classes": torch.tensor([part.label for part in parts], dtype=torch.int64)}


__all__ = ["class_probabilities", "probabilities_of"]
