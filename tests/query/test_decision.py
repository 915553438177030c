"""What is advised to who asks for exact scores of a run that has no factors is what a build then accepts."""

from pathlib import Path

import pytest

from influence.errors import QueryError
from influence.query.decision import decision_of
from influence.recipes import recipe

SEVERAL = [{"path": "a"}, {"path": "b"}]


def test_a_recipe_that_can_have_factors_is_told_how_to_get_them():
    with pytest.raises(QueryError, match=r"Build it again with --set recipe\.exact\.kind=ekfac"):
        decision_of(recipe("graddot"), Path("runs/x"), exact=True, candidates=None)


@pytest.mark.parametrize(
    ("found", "why"),
    [(recipe("tracin", checkpoints=SEVERAL), "under one model, not several checkpoints"), (recipe("trak"), "log_odds")],
)
def test_a_recipe_that_can_have_none_is_told_why_and_not_sent_to_a_build_that_refuses(found, why):
    with pytest.raises(QueryError, match=why) as caught:
        decision_of(found, Path("runs/x"), exact=True, candidates=None)
    assert "--set" not in str(caught.value)
