"""Builds under `task.reduction: mean`: the same scores as under the sum where rows have equally many tokens."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from influence.api import open as open_run
from influence.errors import ConfigError, QueryError
from influence.stages.build import build_run

QUERY = {"prompt": "The river was named", "completion": " after a cartographer"}
NARROW = {"p": 3, "q": 2}


@pytest.mark.parametrize("name", ["logra", "whitened"])
def test_a_build_of_mean_losses_scores_rows_of_one_length_as_one_of_sums(configured, in_process, tmp_path, name):
    found = {}
    for reduction in ("sum", "mean"):
        config = configured(
            "data.max_tokens=6",
            "index.kind=exact",
            "recipe.exact.lexical=false",
            f"task.reduction={reduction}",
            recipe={"name": name, "projection": NARROW},
        )
        build_run(config, tmp_path / reduction)
        with open_run(tmp_path / reduction, device="cpu") as run:
            assert len({meta["tokens"] for meta in run.store.meta(range(run.rows), ("tokens",))}) == 1
            hits = run.query(prompt=QUERY["prompt"], completion=QUERY["completion"], k=5)
            found[reduction] = run.score([QUERY]), [(hit.row, hit.score) for hit in hits.promoting], hits.unit
    scores, best, _ = found["mean"]
    np.testing.assert_allclose(scores, found["sum"][0], rtol=2e-3, atol=1e-3 * np.abs(scores).max())
    np.testing.assert_allclose([score for _, score in best], [score for _, score in found["sum"][1]], rtol=2e-3)
    assert found["mean"][2] == "nats per extra copy of the row (its loss the mean over its tokens)"
    assert found["sum"][2] == "nats per extra copy of the row"


@pytest.mark.parametrize("name", ["graddot", "logra", "whitened"])
def test_under_mean_losses_a_row_scores_for_itself_what_asking_about_it_does(configured, in_process, tmp_path, name):
    recipe = {"name": name, "projection": NARROW}
    build_run(configured("data.limit=12", "task.reduction=mean", recipe=recipe), tmp_path / "run")
    with open_run(tmp_path / "run", device="cpu") as run:
        found = run.self_influence()
        diagonal = run.score([{"text": meta["text"]} for meta in run.meta(range(run.rows))]).diagonal()
        run.self_influence_to(tmp_path / "self.parquet")
    np.testing.assert_allclose(found, diagonal, rtol=5e-3)
    np.testing.assert_allclose(pq.read_table(tmp_path / "self.parquet")["score"].to_numpy(), found, rtol=1e-6)


def test_rows_that_are_sums_of_means_over_parts_are_not_scored_for_themselves(configured, in_process, tmp_path):
    overrides = ("data.limit=4", "data.max_tokens=8", "data.long_rows=split", "task.reduction=mean")
    build_run(configured(*overrides, recipe={"name": "graddot", "projection": NARROW}), tmp_path / "run")
    with (
        open_run(tmp_path / "run", device="cpu") as run,
        pytest.raises(QueryError, match="a row is a sum of means over its parts"),
    ):
        run.self_influence()


def test_a_mean_where_its_tokens_cannot_be_told_is_refused_with_what_can(configured):
    with pytest.raises(ConfigError, match=r"reduction mean.*long_rows split.*truncate"):
        configured("task.reduction=mean", "data.long_rows=split")
    with pytest.raises(ConfigError, match="classifier's loss is of one label"):
        configured("task.reduction=mean", family="bert")
    configured("task.reduction=mean", "data.long_rows=split", recipe="gradcos")
