"""Rows whose text is an evaluation example's, to the word or nearly: they make the evaluation look better than it is.

Two texts are compared as those of two rows are; see `duplicates`. What counts is the text, whatever its label: a model
that has seen it has seen it. Of prompts with completions the text is both.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from influence.capture.texts import readable_texts
from influence.data.example import Example
from influence.issues.checks.duplicates import IGNORED, CopySettings, signed_rows
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject
from influence.text_dedup.minhash import SignedTexts, sign_texts
from influence.text_dedup.near_pairs import cross_pairs, lowest_rows

NEAREST = 5
"""Evaluation examples that are named as evidence."""


class LeakSettings(CopySettings):
    """From where on a row's text is that of an evaluation example; see `CopySettings`."""


def lacks(subject: Subject) -> str | None:
    """It needs an evaluation set."""
    return None if subject.evaluation else "leak compares rows with evaluation examples; give a file of them (--eval)."


def check(subject: Subject, settings: LeakSettings) -> Finding:
    """Flag rows that the evaluation set holds, too."""
    evaluation = subject.evaluation
    assert evaluation is not None, "asked only where there is one"
    texts = _texts(subject, evaluation.examples)
    similar = settings.similar
    folder = subject.folder / f"evaluation-{similar.bands.slots}"
    whose = evaluation.digest
    with (
        signed_rows(subject, similar) as rows,
        sign_texts(lambda start, stop: texts[start:stop], len(texts), similar.bands, folder, whose) as theirs,
    ):
        met = _met(rows, theirs, settings, subject)
    best = met.groupby("row")["jaccard"].max()
    scores = np.zeros(subject.rows, dtype=np.float32)
    scores[best.index.to_numpy()] = best.to_numpy()
    scores[rows.empty] = np.nan
    return Finding(
        "leak",
        scores,
        _cases(met, evaluation.ids),
        "Jaccard similarity, 0 to 1, of a row's text and the nearest evaluation example's (1: word for word); 0 where "
        "it is near none.",
        f"Flagged are rows that have, with an evaluation example, {settings.told}. {IGNORED}",
    )


def _met(rows: SignedTexts, theirs: SignedTexts, settings: CopySettings, subject: Subject) -> Any:
    """Return every row with the examples that it is a copy of: row, example, jaccard; the nearest first."""
    lowest, lowest_theirs = lowest_rows(rows), lowest_rows(theirs)
    asked = np.flatnonzero(~rows.empty & np.isin(rows.digests, theirs.digests))
    equal: Any = pd.DataFrame({"digest": rows.digests[asked], "row": asked})
    same: Any = pd.DataFrame({"digest": theirs.digests, "example": np.arange(theirs.rows)})[~theirs.empty]
    same = same.groupby("digest").head(NEAREST)
    equal = equal.merge(same, on="digest").assign(jaccard=np.float32(1))[["row", "example", "jaccard"]]
    found = cross_pairs(rows, theirs, settings.similar, subject.progress)
    near: Any = pd.DataFrame({"left": found.left, "right": found.right, "jaccard": found.jaccard})
    for side, places, most in (("left", lowest, len(lowest)), ("right", lowest_theirs, NEAREST)):
        concerned = np.flatnonzero(np.isin(places, near[side]))
        copies = pd.DataFrame({side: places[concerned], f"{side}_row": concerned}).groupby(side).head(most)
        near = near.merge(copies, on=side)
    near = near.rename(columns={"left_row": "row", "right_row": "example"})[["row", "example", "jaccard"]]
    met: Any = near if equal.empty else equal if near.empty else pd.concat([equal, near])
    return met.sort_values(["row", "jaccard", "example"], ascending=[True, False, True], ignore_index=True)


def _cases(met: Any, ids: list[str]) -> Mapping[int, Case]:
    cases = {}
    for row, found in met.groupby("row").head(NEAREST).groupby("row"):
        examples, jaccard = found["example"].to_list(), float(found["jaccard"].iloc[0])
        nearly = "is in the evaluation set" if jaccard == 1 else f"is nearly ({jaccard:.2f}) in the evaluation set"
        evidence = tuple(ids[example] for example in examples)
        told = f"drop: {nearly} as {evidence[0]} (example {examples[0]})"
        cases[int(row)] = Case(evidence, "drop", told)
    return cases


def _texts(subject: Subject, examples: tuple[Example, ...]) -> list[str]:
    """Return the examples' texts; tokens given as such are decoded, as those of rows were."""
    return readable_texts(subject.run, examples)


__all__ = ["LeakSettings", "check", "lacks"]
