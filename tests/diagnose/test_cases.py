"""Cases in columns: the same as a dictionary of them, whatever order they come in and however they are cut."""

import numpy as np
import pytest

from influence.issues import cases
from influence.issues.cases import Cases, gather
from influence.issues.finding import Case, Finding

FOUND = {
    7: Case(("row-1", "ä"), "drop", "drop: a copy of row-1"),
    2: Case((), "review", "look at it"),
    40: Case(("row-2",), "relabel", "relabel to 'b'", "b"),
    3: Case(("eval:x",), "drop", ""),
}


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_cases_in_columns_are_those_of_a_dictionary_in_the_order_of_rows(monkeypatch, block):
    monkeypatch.setattr(cases, "BLOCK", block)
    held = gather(FOUND)
    assert held == FOUND
    assert list(held) == sorted(FOUND)
    assert len(held) == 4
    assert held[40].label == "b"
    assert (7 in held, 8 in held) == (True, False)
    with pytest.raises(KeyError):
        held[8]
    assert held.between(3, 40) == {row: FOUND[row] for row in (3, 7)}
    assert gather(held) is held


def test_cases_come_back_from_bytes_as_they_were():
    assert Cases.from_bytes(gather(FOUND).to_bytes()) == FOUND
    assert Cases.from_bytes(gather({}).to_bytes()) == {}


def test_no_more_cases_are_objects_at_a_time_than_a_block(monkeypatch):
    monkeypatch.setattr(cases, "BLOCK", 5)
    alive, most = [], []

    class Watched(tuple):
        def __new__(cls, held):
            alive.append(1)
            most.append(len(alive))
            return super().__new__(cls, held)

        def __del__(self):
            alive.pop()

    held = gather((row, Case(Watched(("x",)), "drop", "d")) for row in range(100))
    assert len(held) == 100
    # A block, and what is being filled of the next.
    assert max(most) <= 2 * 5 + 1


def test_a_findings_flagged_rows_are_ordered_alike_of_columns_and_of_a_dictionary():
    scores = np.linspace(0, 1, 50, dtype=np.float32)
    scores[[2, 7]] = (0.5, np.nan)
    flagged = [Finding("x", scores, found, "m", "r").flagged.tolist() for found in (FOUND, gather(FOUND))]
    assert flagged == [[40, 2, 3, 7]] * 2
