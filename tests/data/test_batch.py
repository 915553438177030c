"""Batches under a token budget, and their padding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from influence.data.batch import collate, cut_batches
from influence.data.tokenise import NOT_SCORED, Part


def part(position, ids, label=None) -> Part:
    labels = np.asarray(ids, np.int32).copy()
    labels[:1] = NOT_SCORED
    return Part(position, np.asarray(ids, np.int32), labels, label)


@given(st.lists(st.integers(0, 50)), st.integers(1, 200), st.integers(1, 9))
def test_every_part_is_in_one_batch_and_no_batch_passes_the_budget(lengths, budget, most):
    batches = cut_batches(lengths, budget, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_batches_go_from_the_longest_part_to_the_shortest_and_keep_the_order_of_equals():
    assert cut_batches([3, 9, 3, 3, 9, 1], token_budget=9) == [[1], [4], [0, 2, 3], [5]]


def test_padding_is_on_the_right_neither_attended_to_nor_scored():
    batch = collate([part(4, [7, 8]), part(1, [5, 6, 9])], pad_id=3)
    assert batch.input_ids.tolist() == [[7, 8, 3], [5, 6, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [[NOT_SCORED, 8, NOT_SCORED], [NOT_SCORED, 6, 9]]
    assert {tensor.dtype for tensor in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}
    assert (batch.positions, batch.tokens, batch.padded, batch.label) == ((4, 1), 5, 6, None)


def test_classes_are_stacked_and_the_whole_batch_moves():
    batch = collate([part(0, [7], 2), part(1, [5, 6], 0)], pad_id=0).to("meta")
    assert batch.label is not None
    assert batch.label.shape == (2,)
    assert {tensor.device.type for tensor in (batch.input_ids, batch.attention_mask, batch.labels, batch.label)} == {
        "meta"
    }
    assert collate([part(0, [7], 2), part(1, [5, 6], 0)], pad_id=0).label.tolist() == [2, 0]


def test_a_batch_of_classified_and_unclassified_parts_is_our_own_mistake():
    with pytest.raises(AssertionError, match="either every part"):
        collate([part(0, [7], 2), part(1, [5])], pad_id=0)
