"""What a worker process keeps to itself: one session lent to tasks of one kind at a time, one number of threads."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch

from influence.capture import fingerprint
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.engine.threads import torch_threads
from influence.engine.worker import SessionPlugin
from influence.errors import FingerprintMismatch
from influence.stages.build import build_run
from influence.store.manifest import Manifest


class Spec(str):
    """A specification that is only a name: of one model by its first letter."""


class Recorded:
    """A session that serves any specification of its own letter, and remembers what it was told."""

    opened: tuple[str, ...] = ()

    def __init__(self, spec):
        Recorded.opened += (spec,)
        self.spec = spec
        self.closed = False

    def serves(self, spec):
        return not self.closed and spec[0] == self.spec[0]

    def is_of(self, spec):
        return spec == self.spec

    def project(self, spec):
        self.spec = spec

    def close(self):
        self.closed = True


@pytest.fixture
def plugin():
    Recorded.opened = ()
    made = SessionPlugin(local=False)
    made.setup(cast(Any, None))
    return made


def test_tasks_of_one_specification_have_the_session_side_by_side(plugin):
    with plugin.lend(Spec("a1"), Recorded) as first, plugin.lend(Spec("a1"), Recorded) as second:
        assert first is second
    assert Recorded.opened == ("a1",)


@pytest.mark.parametrize("other", ["a2", "b1"])
def test_another_specification_waits_until_the_session_is_returned(plugin, other):
    took = threading.Event()

    def take():
        with plugin.lend(Spec(other), Recorded) as session:
            took.set()
            return session.spec

    with ThreadPoolExecutor(1) as pool:
        with plugin.lend(Spec("a1"), Recorded) as held:
            future = pool.submit(take)
            assert not took.wait(0.2)
            assert (held.spec, held.closed) == ("a1", False)
        assert future.result(timeout=10) == other
    assert Recorded.opened == (("a1",) if other == "a2" else ("a1", "b1"))


def test_a_task_that_fails_returns_the_session(plugin):
    with pytest.raises(ValueError, match="poisoned"), plugin.lend(Spec("a1"), Recorded):
        raise ValueError("poisoned")
    with plugin.lend(Spec("b1"), Recorded) as session:
        assert session.spec == "b1"


def test_a_worker_that_closes_in_the_middle_of_a_batch_captures_it_whole(configured):
    plugin = SessionPlugin(local=False)
    plugin.setup(cast(Any, None))
    with plugin.lend(CaptureSpec.of(configured()), Session) as session:
        parts, names = session.tokenise(list(session.rows.examples(0, 3))), ["a", "b", "c"]
        whole = [piece.rows for piece in session.losses(parts, names)]
        session.model.model.layers[1].register_forward_pre_hook(lambda *_: plugin.teardown(cast(Any, None)))
        closing = [piece.rows for piece in session.losses(parts, names)]
        assert all(torch.equal(a, b) for a, b in zip(closing, whole, strict=True))
        session.close()


def test_a_thread_that_never_computed_multiplies_to_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(n, n + 3, generator=generator, dtype=torch.float64) for n in (15, 20, 34, 60, 90)]

    def products():
        with torch_threads(1):
            return [matrix @ matrix.T for matrix in matrices]

    expected = products()
    for _ in range(4):
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(products).result()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_another_number_of_threads_waits_until_nothing_computes_and_leaves_the_callers_own():
    before, took = torch.get_num_threads(), threading.Event()

    def compute():
        with torch_threads(before + 1):
            took.set()
            return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        with torch_threads(before), torch_threads(before):
            future = pool.submit(compute)
            assert not took.wait(0.2)
        assert future.result(timeout=10) == before + 1
    assert torch.get_num_threads() == before


def test_a_worker_with_another_revision_of_the_model_is_refused_with_both_digests(
    configured, in_process, tmp_path, model_folder, monkeypatch
):
    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    config = configured("index.kind=exact", f"model.path={folder}")
    digests, asked = fingerprint._digests, []

    def on_this_worker(model, checkpoints):
        # The coordinator asks first, to settle the fingerprint; after that, workers do.
        asked.append(model.path)
        found = digests(model, checkpoints)
        return found if len(asked) == 1 else [(found[0][0], "another revision"), *found[1:]]

    monkeypatch.setattr(fingerprint, "_digests", on_this_worker)
    remote = config.model_copy(
        update={"cluster": config.cluster.model_copy(update={"kind": "address", "address": "tcp://elsewhere:8786"})}
    )
    with pytest.raises(FingerprintMismatch, match=r"has the digest another revision; the run's coordinator found \w+"):
        build_run(remote, tmp_path / "run")
    assert not list((tmp_path / "run" / "rows").glob("*.json"))
    parts = Manifest.load(tmp_path / "run").fingerprint_parts
    assert fingerprint.expected_digests(remote, parts) == (parts["model"], parts["tokeniser"])
    assert fingerprint.expected_digests(config, parts) == ()
