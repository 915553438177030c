"""Batches cut into their examples, and the projection the gradient tests share."""

from dataclasses import replace
from typing import Any

import pytest

from influence.gradients.projection import Projection, ProjectionSettings
from influence.task import CausalLM, SequenceClassification, Task


@pytest.fixture(scope="session")
def seeded() -> Projection:
    return Projection(ProjectionSettings(p=5, q=7, seed=3))


@pytest.fixture(scope="session")
def whole() -> Projection:
    return Projection(ProjectionSettings(kind="none"))


def alone(batch: Any, index: int) -> Any:
    """Example `index` of a batch by itself, without its padding."""
    length = int(batch.attention_mask[index].sum())
    rows = slice(index, index + 1)
    return replace(
        batch,
        input_ids=batch.input_ids[rows, :length],
        attention_mask=batch.attention_mask[rows, :length],
        labels=batch.labels[rows, :length],
        label=batch.label[rows],
        positions=(index,),
        tokens=length,
    )


def examples(batch: Any) -> list[Any]:
    return [alone(batch, index) for index in range(len(batch.input_ids))]


def task_of(family: str) -> Task:
    return SequenceClassification() if family == "bert" else CausalLM()
