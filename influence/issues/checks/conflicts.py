"""Rows that are given the same and are to answer otherwise: another label, or another completion.

Training on the one undoes the other: their gradients point against each other. A pair is a conflict if its inputs are
copies (see `duplicates`), its answers differ, and the cosine of its stored gradients is below `cosine`; by default
further below zero than three standard deviations of the cosine of two random directions, 1/√D each. Rows with the same
input and answer are copies, not conflicts.

Where two thirds or more of the rows of a set of copies have one label, the others are suggested to get it, and those
two thirds aren't flagged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field

from influence.issues.checks.duplicates import (
    IGNORED,
    CopySettings,
    copy_sets,
    data_lacks,
    pairs_of_rows,
    signed_rows,
)
from influence.issues.checks.pair_cosines import pair_cosines
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject
from influence.store.columns import NO_CODE
from influence.text_dedup.inputs import answers, is_split, parted, same_answers
from influence.text_dedup.minhash import SignedTexts, sign_texts
from influence.text_dedup.near_pairs import NOBODY, Pairs, Similar, lowest_rows, near_pairs

MOST = 5
"""Rows of another answer that each row is compared with."""
MAJORITY = 2 / 3


class ConflictSettings(CopySettings):
    """From where on two rows are in conflict.

    Attributes:
        cosine: Flag pairs whose gradients' cosine is at most this; None: −3/√D, for rows of D columns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cosine: float | None = Field(default=None, ge=-1, le=1)


def lacks(subject: Subject) -> str | None:
    """It needs labels, or completions apart from their prompts."""
    if subject.run.config.model.kind == "sequence_classification":
        return None
    if is_split(subject.run):
        return data_lacks(subject)
    return "conflict compares the answers to the same input: labels, completions of prompts, or the assistant's turns."


def check(subject: Subject, settings: ConflictSettings) -> Finding:
    """Flag rows whose gradient opposes that of a row with nearly the same input and another answer."""
    limit = -3 / np.sqrt(subject.run.store.dims) if settings.cosine is None else settings.cosine
    opened = _inputs(subject, settings.similar) if is_split(subject.run) else signed_rows(subject, settings.similar)
    with opened as texts:
        pairs = _pairs(subject, texts, settings.similar)
        codes = _answer_codes(subject, texts, pairs)
        sets = copy_sets(texts, pairs).representative
    met = _opposed(subject, _differing(subject, lowest_rows(texts), pairs, codes, settings.similar))
    scores = np.full(subject.rows, np.nan, dtype=np.float32)
    strongest = -met.groupby("row")["cosine"].min()
    scores[strongest.index.to_numpy()] = strongest.to_numpy()
    clear = {} if is_split(subject.run) else _majorities(sets, codes, strongest.index.to_numpy())
    wanted = {row: clear.get(int(sets[row])) for row in strongest.index.to_list()}
    odd = np.array([wanted[row] != codes[row] for row in met["row"].to_list()], dtype=bool)
    met = met[odd & (met["cosine"] <= limit).to_numpy()]
    chosen = "given" if settings.cosine is not None else f"−3/√{subject.run.store.dims:,}, three deviations of chance"
    return Finding(
        "conflict",
        scores,
        _cases(subject, met, wanted),
        "Minus the cosine of a row's gradient and that of the most opposed row with nearly the same input and another "
        "answer, −1 to 1; nothing is said where there is no such row.",
        f"Flagged are rows whose cosine is {limit:.3f} or less ({chosen}). Inputs are nearly the same if they have "
        f"{settings.told}. Where two thirds of a set have one label, only the others are flagged. {IGNORED}",
    )


def _inputs(subject: Subject, similar: Similar) -> SignedTexts:
    data = subject.data

    def read(start: int, stop: int) -> list[str]:
        return [parted(example)[0] for example in data.examples(start, stop)]

    folder = subject.folder / f"inputs-{similar.bands.slots}"
    whose = f"inputs of {subject.run.manifest.rows_fingerprint}"
    return sign_texts(read, subject.rows, similar.bands, folder, whose, subject.progress)


def _pairs(subject: Subject, texts: SignedTexts, similar: Similar) -> Pairs:
    if not is_split(subject.run):
        return pairs_of_rows(subject, texts, similar)
    folder = subject.folder / f"input-pairs-{similar.jaccard}-{similar.words}"
    return near_pairs(texts, similar, folder, f"inputs of {subject.run.manifest.rows_fingerprint}", subject.progress)


def _answer_codes(subject: Subject, texts: SignedTexts, pairs: Pairs) -> np.ndarray:
    """Return a code of each row's answer, int64 [rows]; −1 where it has none, or no other row has its input."""
    if not is_split(subject.run):
        return subject.labels.codes.astype(np.int64)
    codes = np.full(subject.rows, NO_CODE, dtype=np.int64)
    rows = _not_alone(lowest_rows(texts), pairs)
    found = [np.where(block.empty, np.uint64(0), block.digests) for _, block in answers(subject.data, rows)]
    digests = np.concatenate([np.empty(0, np.uint64), *found])
    codes[rows] = np.where(digests == 0, NO_CODE, np.unique(digests, return_inverse=True)[1])
    return codes


def _not_alone(lowest: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the rows whose input another row has, too, or nearly."""
    concerned = np.bincount(lowest[lowest != NOBODY], minlength=len(lowest)) > 1
    concerned[pairs.left] = concerned[pairs.right] = True
    return np.flatnonzero((lowest != NOBODY) & concerned[lowest])


def _differing(subject: Subject, lowest: np.ndarray, pairs: Pairs, codes: np.ndarray, similar: Similar) -> Any:
    """Return each row beside a few rows of nearly the same input and another answer: row, other."""
    asked = _not_alone(lowest, pairs)
    asked = asked[codes[asked] != NO_CODE]
    rows: Any = pd.DataFrame({"input": lowest[asked], "code": codes[asked], "row": asked})
    nodes: Any = rows.groupby(["input", "code"], as_index=False)["row"].min()
    # Of one input with many answers each answer is held against the next ones, the first after the last.
    place, count = nodes.groupby("input").cumcount(), nodes.groupby("input")["code"].transform("size")
    start, edges = np.arange(len(nodes)) - place, []
    for step in range(1, MOST + 1):
        met = (count > step).to_numpy()
        other = (start + (place + step) % count).to_numpy()[met]
        edges.append(pd.DataFrame({"node": np.flatnonzero(met), "other": nodes["row"].to_numpy()[other]}))
    nodes = nodes.rename(columns={"row": "head"}).assign(node=np.arange(len(nodes)))
    for left, right in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
        near: Any = pd.DataFrame({"input": left, "near": right}).merge(nodes, on="input")
        near = near.merge(nodes, left_on="near", right_on="input", suffixes=("", "_near"))
        near = near[near["code"] != near["code_near"]].groupby("node").head(MOST)
        edges.append(near[["node", "head_near"]].rename(columns={"head_near": "other"}))
    found: Any = pd.concat(edges).astype(np.int64).drop_duplicates()
    if is_split(subject.run):
        heads = nodes["head"].to_numpy()[found["node"].to_numpy()]
        found = found[~same_answers(subject.data, heads, found["other"].to_numpy(), similar)]
    met = rows.merge(nodes, on=["input", "code"]).merge(found.groupby("node").head(MOST), on="node")
    return met[["row", "other"]].sort_values(["row", "other"], ignore_index=True)


def _opposed(subject: Subject, met: Any) -> Any:
    """Add the cosine of each pair's stored gradients; pairs with a gradient of zero are left out."""
    cosines = pair_cosines(subject.run.store, met["row"].to_numpy(), met["other"].to_numpy())
    return met.assign(cosine=cosines).dropna(ignore_index=True)


def _majorities(sets: np.ndarray, codes: np.ndarray, concerned: np.ndarray) -> dict[int, int]:
    """Return, of the sets that some rows are in, the code that two thirds of the set have, where there is one."""
    members = np.flatnonzero(np.isin(sets, sets[concerned]) & (codes != NO_CODE))
    counts: Any = pd.DataFrame({"set": sets[members], "code": codes[members]}).value_counts().reset_index()
    counts["share"] = counts["count"] / counts.groupby("set")["count"].transform("sum")
    clear = counts[(counts["share"] >= MAJORITY - 1e-9) & (counts["count"] > 1)]
    return dict(zip(clear["set"].tolist(), clear["code"].tolist(), strict=True))


def _cases(subject: Subject, met: Any, wanted: Mapping[int, int | None]) -> dict[int, Case]:
    met = met.sort_values(["row", "cosine", "other"], ignore_index=True)
    ids = subject.ids(met["other"].to_numpy())
    cases = {}
    for row, found in met.groupby("row"):
        others: Sequence[int] = found["other"].to_list()
        evidence = tuple(ids[place] for place in found.index)
        number, like = int(row), f"{evidence[0]} (row {others[0]})"
        code = wanted[number]
        if code is not None:
            name = subject.labels.names[code]
            told = f"relabel to {name!r}: most rows with nearly this text have it, as {like}"
            cases[number] = Case(evidence, "relabel", told, name)
        else:
            answer = subject.labels.name(others[0])
            other = "another completion" if is_split(subject.run) else f"the label {answer!r}"
            cases[number] = Case(evidence, "review", f"review: {like} has nearly the same input and {other}")
    return cases


__all__ = ["ConflictSettings", "check", "lacks"]
