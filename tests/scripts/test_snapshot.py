"""`scripts/snapshot.py`: it covers every preset and codec, and a comparison names what differs and by how much."""

import json
from typing import get_args

import pytest
import snapshot
import snapshot_material

from influence.recipes import PRESETS
from influence.store.codec import CodecName


def test_every_preset_and_every_codec_is_built():
    assert set(snapshot_material.RECIPES) == set(PRESETS)
    assert set(snapshot_material.CODECS) == set(get_args(CodecName))


@pytest.fixture
def compared(tmp_path, capsys):
    """`compared(numbers, words)`: the exit code and the lines of a comparison with one record of each part."""

    def compare(numbers, words, parts=("numbers", "words")):
        old = {"commit": "a", "files": {}, "numbers": {"x.scores": [1.0, 2.0]}, "words": {"x.unit": "nats"}}
        for name, record in (("old", old), ("new", {**old, "numbers": numbers, "words": words})):
            (tmp_path / name).mkdir()
            (tmp_path / name / "record.json").write_text(json.dumps(record))
        code = snapshot.report(tmp_path / "old", tmp_path / "new", set(parts), 10)
        return code, capsys.readouterr().out

    return compare


def test_equal_records_end_with_0(compared):
    code, out = compared({"x.scores": [1.0, 2.0]}, {"x.unit": "nats"})
    assert code == 0
    assert "numbers: 1 before, 1 after, 0 differ" in out


def test_the_last_bit_of_a_number_is_a_difference_with_its_relative_size(compared):
    code, out = compared({"x.scores": [1.0, 2.0000000000000004]}, {"x.unit": "nats"})
    assert code == 1
    assert "x.scores: 1 numbers (at most 2.2e-16 of the largest)" in out


def test_words_that_differ_are_shown_and_count_only_where_asked_for(compared):
    code, out = compared({"x.scores": [1.0, 2.0], "y": 3}, {"x.unit": "bits"}, parts=["files"])
    assert code == 0
    assert "y: only after" in out
    assert "x.unit: 'nats' is now 'bits'" in out
