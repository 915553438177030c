"""What a run's folder keeps of graphs of nearest rows: those that stand, and nothing that nothing can use."""

import subprocess
import sys

import pytest

from influence.artifacts.lock import lock_folder
from influence.errors import StoreError
from influence.neighbors import graphs as neighbour_graphs
from influence.neighbors import plan as neighbour_plan
from influence.neighbors.plan import plan_graph
from influence.neighbors.stage import build_graph
from tests.pipeline.test_neighbour_stage import clustered, dying_after, graph, stored

__all__ = ["stored"]


@pytest.fixture
def unfinished(configured, stored, monkeypatch):
    """A run, and a graph by way of cells that died with all codes copied."""
    monkeypatch.setattr(neighbour_plan, "CELL_ROWS", 9)
    monkeypatch.setattr(neighbour_plan, "ASKED_ROWS", 30)
    store = stored(clustered(150))
    with dying_after(monkeypatch, 1), pytest.raises(StoreError, match="the power is cut"):
        graph(configured(), store, compared=60)
    plan = plan_graph(store, 10, 60)
    assert list(plan.folder.glob("codes-*.safetensors"))
    return store, plan.folder


def test_an_unfinished_graph_of_other_settings_is_gone_once_another_stands(configured, unfinished):
    store, left = unfinished
    first = graph(configured(), store, k=3)
    assert not left.exists()
    second = graph(configured(), store, k=4)
    assert first.stands
    assert second.stands


def test_what_another_process_holds_and_what_is_somebodys_own_stay(configured, unfinished):
    store, left = unfinished
    with lock_folder(left):
        graph(configured(), store, k=3)
        assert list(left.glob("codes-*.safetensors"))
    (left / "notes.txt").write_text("mine")
    named = left.with_name("my-graph")
    named.mkdir()
    graph(configured(), store, k=4)
    assert list(left.glob("codes-*.safetensors"))
    assert named.exists()
    (left / "notes.txt").unlink()
    graph(configured(), store, k=5)
    assert not left.exists()


def test_a_graph_of_an_older_version_is_gone_once_another_stands(configured, stored, monkeypatch):
    store = stored(clustered(64))
    with monkeypatch.context() as patch:
        patch.setattr(neighbour_graphs, "VERSION", neighbour_plan.VERSION - 1)
        old = graph(configured(), store, k=3)
    graph(configured(), store, k=4)
    assert not old.folder.exists()


def test_a_graph_that_was_killed_before_it_said_that_it_stands_is_kept_and_says_so(configured, stored):
    store = stored(clustered(64))
    plan = graph(configured(), store, k=3)
    before = {path.name: path.stat().st_mtime_ns for path in plan.folder.glob("near-*")}
    plan.mark.unlink()
    assert not plan.stands
    build_graph(configured(), store, plan)
    assert plan.stands
    assert {path.name: path.stat().st_mtime_ns for path in plan.folder.glob("near-*")} == before


def test_a_worker_that_compares_rows_never_loads_the_code_of_models():
    code = "import sys, influence.neighbors.stage; print('transformers.modeling_utils' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
