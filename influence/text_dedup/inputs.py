"""A run's rows as what the model was given and what it was to answer, read from the data set they were built from."""

import json
from collections.abc import Iterator

import numpy as np

from influence.data.dataset import Rows, locate, open_rows
from influence.data.example import Example, MessagesContent, PromptContent
from influence.data.identity import DataIdentity
from influence.errors import DataError
from influence.run_dir import RunDir
from influence.text_dedup.near_pairs import Similar, jaccard_of_sets
from influence.text_dedup.shingles import Shingled, shingled

BLOCK = 1024
"""Rows whose answers are in memory at a time."""
SPLIT = ("prompt", "messages")
"""Columns of rows that have an input and an answer."""


def open_data(run: RunDir) -> Rows:
    """Open the data set that a run was built from.

    Raises:
        DataError: It can't be read, or isn't the one that the run was built from.
    """
    return open_rows(run.config.data, DataIdentity.of(run.manifest.fingerprint_parts, run.rows, run.path))


def data_files(run: RunDir) -> tuple[str, ...]:
    """Return the files that a run's rows were read from; none where they are gone, or are no files of their own."""
    try:
        return locate(run.config.data)[1]
    except DataError:
        return ()


def is_split(run: RunDir) -> bool:
    """Whether a language model's rows are prompts with completions, or conversations."""
    return run.config.model.kind == "causal_lm" and any(_reads(run, name) for name in SPLIT)


def _reads(run: RunDir, role: str) -> bool:
    columns = json.loads(str(run.manifest.fingerprint_parts["data.columns"]))
    return columns.get(role) is not None


def parted(example: Example) -> tuple[str, str]:
    """Return what the model was given and what it was to say: of a conversation, its last message by the assistant."""
    match example.content:
        case PromptContent(prompt, completion):
            return prompt, completion
        case MessagesContent(messages) if messages[-1]["role"] == "assistant":
            said = [f"{message['role']}: {json.dumps(message['content'], ensure_ascii=False)}" for message in messages]
            return "\n".join(said[:-1]), said[-1]
        case _:
            return example.text, ""


def answers(data: Rows, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Shingled]]:
    """Yield the shingled answers of some rows, in their order, a block at a time: (places, answers)."""
    for first in range(0, len(rows), BLOCK):
        places = np.arange(first, min(first + BLOCK, len(rows)))
        yield places, shingled([parted(data.example(int(row)))[1] for row in rows[places]])


def same_answers(data: Rows, left: np.ndarray, right: np.ndarray, similar: Similar) -> np.ndarray:
    """Return of which pairs of rows the answers are the same, or nearly so, bool [pairs]."""
    found = np.empty(len(left), dtype=bool)
    for (places, one), (_, other) in zip(answers(data, left), answers(data, right), strict=True):
        alike = jaccard_of_sets(_sets(one), _sets(other)) >= similar.jaccard
        longer = np.maximum(one.words, other.words) >= similar.words
        found[places] = (one.digests == other.digests) | (alike & longer)
    return found


def _sets(texts: Shingled) -> list[np.ndarray]:
    return np.split(texts.shingles, texts.ends[:-1])


__all__ = ["answers", "data_files", "is_split", "open_data", "parted", "same_answers"]
