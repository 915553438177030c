"""JSON that a stranger may have written means one thing, or is refused with the reason."""

import json

import pytest

from index import strict_json
from index.strict_json import MAX_DEPTH, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ('[{"a": 1, "\\u0061": 2}]', "the key 'a' is given twice"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper than 64"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested deeper than 64"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1e999}', "beyond the range of float64"),
        (f'{{"a": {"9" * 5000}}}', "4300 digits"),
        ('{"\\ud800": 1}', "half of a surrogate pair"),
        ('{"a": 1} {"b": 2}', "Extra data"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
    ],
)
def test_a_document_that_means_two_things_or_none_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


@pytest.mark.parametrize("depth", [0, 1, MAX_DEPTH - 2])
def test_any_other_document_is_what_pythons_reader_makes_of_it(depth):
    text = "[" * depth + '{"a": [1, -2.5e3, true, null, "\\u00e4\\ud83d\\ude00"], "": 1}' + "]" * depth
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_infinity_is_a_number_where_models_configurations_have_it():
    assert parse_json('{"time_step_limit": [0.0, Infinity]}', constants=True) == {
        "time_step_limit": [0.0, float("inf")]
    }


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with path.open("r+b") as file:
        file.truncate(strict_json.MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(ValueError, match="it has 268,435,457 bytes"):
        read_json(path)
