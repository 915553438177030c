"""What a plan reckons with: the work that a build does, timed on the run's own rows."""

from contextlib import nullcontext

import pytest

from influence.pipeline import timing
from influence.pipeline.forecast import Plan, plan_run

DECIDED = ("recipe.projection.rows=whitened", "recipe.exact.kind=ekfac", "recipe.factors.rows=12")


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.02)


@pytest.fixture
def planned(in_process, monkeypatch):
    monkeypatch.setattr("influence.pipeline.forecast.connect", lambda *_: nullcontext(in_process))
    return plan_run


def test_every_stage_of_a_recipe_is_timed(planned, configured):
    plan = planned(configured(*DECIDED, "store.rows_per_shard=16"))
    # A whitened projection of the preset logra: factors for the projection, a Fisher of its rows.
    assert (
        plan.work.keys()
        == plan.tasks.keys()
        == {*("capture", "factors", "decomposition", "curvature", "fisher decomposition")}
    )
    assert all(seconds > 0 for seconds in plan.work.values())
    assert (plan.tasks["capture"], plan.tasks["factors"]) == (plan.estimate.shards, 1)
    assert planned(configured("recipe.name=graddot", "index.kind=exact")).work.keys() == {"capture"}


def test_tokens_a_row_are_counted_over_all_rows_of_a_small_data_set(planned, configured, written, tokenizer):
    texts = ["A list.", "A list keeps its items in order.", "The river."]
    plan = planned(configured("index.kind=exact", data=written(*({"text": text} for text in texts))))
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert plan.probed.tokens_per_row == pytest.approx(sum(lengths) / 3)


def test_more_workers_than_tasks_share_nothing():
    plan = Plan(None, None, 2, 7.0, {"capture": 100.0, "decomposition": 10.0}, {"capture": 5, "decomposition": 1})  # type: ignore[arg-type]
    seconds = [round(3600 * plan.hours(count), 6) for count in (1, 2, 5, 50)]
    assert seconds == [117.0, 77.0, 37.0, 37.0]
    assert 3600 * plan.worker_hours == pytest.approx(110.0)
