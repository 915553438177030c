"""Columns beside `input_ids`: padding is dropped, masks decide what is scored, and nothing is ignored in silence."""

import datasets
import pytest

from influence.data.dataset import DataSettings, open_rows
from influence.errors import DataError

IDS = [5, 6, 7, 8]


def contents(path, **settings):
    return [example.content for example in open_rows(DataSettings(path=str(path), **settings)).examples()]


def test_positions_that_the_mask_leaves_out_are_dropped_on_either_side(jsonl):
    plain, left, right, both, none, booleans = contents(
        jsonl(
            [
                {"input_ids": IDS, "labels": [-100, 6, 7, 8]},
                {
                    "input_ids": [0, 0, *IDS],
                    "attention_mask": [0, 0, 1, 1, 1, 1],
                    "labels": [-100, -100, -100, 6, 7, 8],
                },
                {"input_ids": [*IDS, 0], "attention_mask": [1, 1, 1, 1, 0], "labels": [-100, 6, 7, 8, 0]},
                {"input_ids": [0, *IDS, 0], "attention_mask": [0, 1, 1, 1, 1, 0], "labels": [0, -100, 6, 7, 8, 0]},
                {"input_ids": [0, 0], "attention_mask": [0, 0]},
                {"input_ids": IDS, "attention_mask": [True] * 4, "labels": [-100, 6, 7, 8]},
            ]
        )
    )
    assert plain == left == right == both == booleans
    assert none.input_ids == ()


@pytest.mark.parametrize("column", ["completion_mask", "assistant_masks"])
def test_a_mask_of_what_is_trained_on_decides_what_is_scored(jsonl, column):
    alone, labelled = contents(
        jsonl(
            [
                {"input_ids": IDS, column: [0, 0, 1, 1]},
                {"input_ids": IDS, "labels": [5, -100, -100, 8], column: [0, 1, 1, 1]},
            ]
        )
    )
    assert alone.labels == (-100, -100, 7, 8)
    assert labelled.labels == (-100, -100, -100, 8)


def test_the_usual_positions_segments_and_lengths_are_read_over(jsonl):
    row = {"input_ids": [0, *IDS], "attention_mask": [0, 1, 1, 1, 1]}
    beside = {"position_ids": [1, 0, 1, 2, 3], "token_type_ids": [0] * 5, "seq_lengths": [5]}
    (content,) = contents(jsonl([{**row, **beside}]))
    assert content.input_ids == tuple(IDS)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"attention_mask": [1, 0, 1, 1]}, "'attention_mask' is 0 at 1, between tokens with 1"),
        ({"attention_mask": [1, 1, 1]}, "'attention_mask' has 3 entries for 4 input_ids"),
        ({"attention_mask": [1, 1, 1, 2]}, "'attention_mask' holds 2, expected 0 or 1"),
        ({"position_ids": [0, 1, 0, 1]}, "packed of several texts"),
        ({"token_type_ids": [0, 0, 1, 1]}, "'token_type_ids' holds 1, and rows are read as one segment"),
        ({"seq_lengths": [2, 2]}, "packed of several texts"),
        ({"completion_mask": [0, 3, 1, 1]}, "'completion_mask' holds 3"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_row_with_the_column(jsonl, tmp_path, beside, said):
    records = [{"input_ids": IDS}, {"input_ids": IDS, **beside}]
    datasets.Dataset.from_list(records[1:]).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="line 2") as caught:
        contents(jsonl(records))
    assert said in str(caught.value)
    with pytest.raises(DataError, match="row 0") as caught:
        contents(tmp_path / "saved")
    assert said in str(caught.value)


@pytest.mark.parametrize("column", ["position_ids", "token_type_ids", "seq_lengths"])
def test_a_column_that_is_left_out_by_name_is_not_looked_at(jsonl, column):
    value = [2, 2] if column == "seq_lengths" else [0, 1, 0, 1]
    (content,) = contents(jsonl([{"input_ids": IDS, column: value}]), columns={column: None})
    assert content.input_ids == tuple(IDS)


@pytest.mark.parametrize("column", ["loss_mask", "segment_ids", "sequence_id"])
def test_columns_that_other_trainers_read_are_refused_by_name(jsonl, column):
    with pytest.raises(DataError, match=f"has the column '{column}' beside input_ids"):
        contents(jsonl([{"input_ids": IDS, column: [0, 0, 1, 1]}]))
