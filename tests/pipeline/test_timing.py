"""What a plan reckons with: the work that a build does, timed on the run's own rows."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from index.approximate.parts import part_ranges
from index.factory import plan_factory
from index.settings import IndexSettings
from influence.axes import ModuleColumns
from influence.estimate import index_timing, timing
from influence.estimate.forecast import Plan, plan_run
from influence.estimate.index_timing import index_work
from influence.recipes import Recipe
from influence.stages.requirement import PROCESS
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for

DECIDED = ("recipe.projection.rows=whitened", "recipe.exact.kind=ekfac", "recipe.factors.rows=12")


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.02)


@pytest.fixture
def planned(in_process, monkeypatch):
    monkeypatch.setattr("influence.estimate.forecast.connect", lambda *_: nullcontext(in_process))
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


@pytest.mark.parametrize(("seconds", "tried"), [(10.0, [1, 1]), (1e-6, [1, 1, 2, 4, 8, 16, 32])])
def test_a_stage_is_measured_for_a_share_of_what_it_takes_and_its_first_use_does_not_count(
    planned, configured, monkeypatch, seconds, tried
):
    now, rows = [0.0], []

    def capture(session, codec, chosen, kept):
        # What is loaded at the first use takes longer than any row.
        now[0] += 100.0 * (not rows) + seconds * sum(len(part.input_ids) for part in kept)
        rows.append(len(chosen))

    monkeypatch.setattr(timing, "SECONDS", 6.0)
    monkeypatch.setattr(timing, "capture_most", capture)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    plan = planned(configured("recipe.name=graddot", "index.kind=exact"))
    assert rows == tried
    assert plan.work["capture"] == pytest.approx(40 * plan.probed.tokens_per_row * seconds)
    assert plan.measuring == pytest.approx(now[0])


def test_a_query_takes_its_candidates_and_several_take_their_gradients_memory(planned, configured):
    plan = planned(configured(*DECIDED, "recipe.exact.candidates=5"))
    query = plan.query
    assert query.candidates == 15
    assert query.seconds(2) - query.seconds(1) == pytest.approx(query.own + 15 * query.row)
    whole = sum(module.inputs * module.outputs for module in plan.probed.modules)
    assert query.gradient == 4 * whole
    alone = replace(query, loading=0)
    assert alone.memory(10) - alone.memory(1) == 9 * query.gradient + 2 * 9 * query.gradient
    # EK-FAC's eigenvalues are held in float64 beside the bases, and come from a file of float32.
    squares = sum(module.inputs**2 + module.outputs**2 for module in plan.probed.modules)
    assert query.loading == max(8 * whole, 4 * squares)
    assert query.fixed > PROCESS + plan.probed.model_bytes + 8 * whole
    assert query.memory(1) == query.fixed + max(query.loading, 3 * query.gradient)
    most = query.memory(10**6)
    assert most == query.memory(10**7)
    indexed = planned(configured("recipe.name=graddot", "index.kind=exact")).query
    assert (indexed.candidates, indexed.gradient) == (0, 4 * plan.probed.dims)
    assert indexed.memory(10**6) == indexed.memory(10**7)
    assert planned(configured(*DECIDED, "recipe.exact.candidates=null")).query.candidates == 40


def test_queries_that_are_held_together_take_a_row_once_and_groups_take_it_again(planned, configured):
    query = replace(planned(configured(*DECIDED, "recipe.exact.candidates=5")).query, together=4)
    assert (query.candidates, query.rows) == (15, 40)
    for queries, rows in ((1, 15), (2, 30), (4, 40), (5, 40 + 15), (12, 3 * 40)):
        assert query.seconds(queries) == pytest.approx(query.opening + queries * query.own + rows * query.row)
    indexed = planned(configured("recipe.name=graddot", "index.kind=exact")).query
    assert indexed.seconds(100) == pytest.approx(indexed.opening + 100 * indexed.own)


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


APPROXIMATE = {"index training", "index parts", "index truth", "index measuring"}


def test_an_approximate_index_is_timed_step_by_step(planned, configured):
    plan = planned(configured(*DECIDED, "index.kind=ivf_rabitq2"))
    assert plan.work.keys() >= APPROXIMATE
    assert all(plan.work[step] > 0 for step in APPROXIMATE)
    assert (plan.tasks["index training"], plan.tasks["index parts"]) == (1, 1)
    assert not planned(configured("recipe.name=graddot", "index.kind=flat")).work.keys() & APPROXIMATE


def test_an_index_of_twice_the_rows_takes_parts_truth_and_measuring_twice_as_long():
    graddot, settings = Recipe(name="graddot"), IndexSettings(kind="factory", factory="RR64,IVF4,RaBitQ")
    module = ModuleColumns(name="a", outputs=8, inputs=8, q=8, p=8, start=0, stop=64)
    once, twice = (plan_factory(settings, rows, 64) for rows in (10**6, 2 * 10**6))
    timed = iter(range(1, 1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_timing.time, "perf_counter", lambda: next(timed))
        half, tasks = index_work(once, 10**6, codec_for(CodecSettings(), (module,)), graddot, (), 1)
        timed = iter(range(1, 1000))
        whole, _ = index_work(twice, 2 * 10**6, codec_for(CodecSettings(), (module,)), graddot, (), 1)
    assert tasks["index parts"] == len(part_ranges(once, 10**6)) == 1
    assert whole["index parts"] == pytest.approx(2 * half["index parts"])
    assert whole["index truth"] == pytest.approx(2 * half["index truth"])
    assert whole["index training"] == pytest.approx(half["index training"])


@pytest.mark.parametrize("kind", ["sq8", "ivf_pq", "ivf_flat", "ivf_rabitq2"])
@pytest.mark.parametrize("codec", ["float16", "bits"])
@pytest.mark.parametrize("recipe", ["graddot", "trackstar"])
def test_every_kind_of_codes_and_rows_can_be_timed(kind, codec, recipe):
    module = ModuleColumns(name="a", outputs=8, inputs=8, q=8, p=8, start=0, stop=64)
    chosen = Recipe(name=recipe)
    plan = plan_factory(IndexSettings(kind=kind), 5000, 64)
    work, _ = index_work(plan, 5000, codec_for(CodecSettings(codec=codec), (module,)), chosen, (module,), 1)
    assert all(seconds > 0 for seconds in work.values())


def test_the_plan_of_auto_names_every_step_that_it_may_climb_to(planned, configured, monkeypatch):
    monkeypatch.setattr("index.factory.FLAT_BYTES", 1)
    plan = planned(configured("recipe.name=graddot", "index.kind=auto"))
    assert plan.index.startswith("ivf_rabitq2: ")
    assert "; if it finds too little: " in plan.index
    assert plan.index.endswith("exact: every row is compared")
