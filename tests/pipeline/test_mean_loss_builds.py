"""Builds under `task.reduction: mean`: the same scores as under the sum where rows have equally many tokens."""

import numpy as np
import pytest

from influence.errors import ConfigError
from influence.run import open as open_run
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


def test_a_mean_where_its_tokens_cannot_be_told_is_refused_with_what_can(configured):
    with pytest.raises(ConfigError, match=r"reduction mean.*long_rows split.*truncate"):
        configured("task.reduction=mean", "data.long_rows=split")
    with pytest.raises(ConfigError, match="classifier's loss is of one label"):
        configured("task.reduction=mean", family="bert")
    configured("task.reduction=mean", "data.long_rows=split", recipe="gradcos")
