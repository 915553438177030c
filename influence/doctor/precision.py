"""Scores in a narrow dtype against scores in float32."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from influence.config import RunConfig
from influence.data.tokenise import Part
from influence.doctor.check import Check
from influence.doctor.subject import Subject, capture_of, opened

CORRELATION = 0.99


def precision(config: RunConfig, dtype: str, parts: Sequence[Part], rows: Tensor) -> Check:
    """Compare scores with those in float32, row against row, without curvature, which ten rows can't fit."""
    name = f"{dtype} against float32"
    if dtype in ("float32", "float64"):
        return Check("precision", "note", f"does not apply: it computes in {dtype}")
    if len(parts) < 3:
        return Check(name, "note", f"{len(parts)} rows are too few for a correlation")
    exact = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
    with opened(exact) as session, capture_of(session) as capture:
        wide = Subject(session, capture, parts).alone()
    found = _correlation(_scores(rows, config), _scores(wide, config))
    return Check(
        name,
        "pass" if found >= CORRELATION else "fail",
        f"scores correlate {found:.4f}",
        f"at least {CORRELATION}",
        f"Scores in {dtype} rank rows differently from float32: set model.dtype to float32.",
        value=found,
        limit=CORRELATION,
    )


def _scores(rows: Tensor, config: RunConfig) -> Tensor:
    """Return each row's score for each row, [n, n], as the recipe compares them."""
    rows = rows.double()
    if config.recipe.stored.comparison == "cosine":
        rows = nn.functional.normalize(rows, dim=1)
    return rows @ rows.T


def _correlation(ours: Tensor, theirs: Tensor) -> float:
    """Return the mean over queries of the correlation of their scores, each row as a query against the others."""
    others = ~torch.eye(len(ours), dtype=torch.bool)
    pairs = zip(ours, theirs, others, strict=True)
    found = [torch.corrcoef(torch.stack([low[kept], wide[kept]]))[0, 1] for low, wide, kept in pairs]
    return float(torch.stack(found).mean().nan_to_num(-1.0))
