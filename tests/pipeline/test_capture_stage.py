"""One task, one shard: parts add up, nothing scored is a zero row, and what isn't finite is named."""

import numpy as np
import pytest
import torch

from influence.capture.captured import whole_rows
from influence.capture.rows import RowCapture
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.capture.transfer import Piece
from influence.data.tokenise import Part
from influence.engine.stage import named
from influence.errors import CaptureError, DataError
from influence.gradients.capture import Capture
from influence.store.codec import CodecSettings
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, ShardRange
from influence.store.shard import ShardFiles, read_rows


@pytest.fixture
def captured(configured, tmp_path):
    """`captured(config)`: the first shard of a configuration as (record, unit, norms)."""
    sessions = []

    def capture(config, stop=None):
        session = Session(CaptureSpec.of(config))
        sessions.append(session)
        span = ShardRange(shard=0, start=0, stop=stop or len(session.rows))
        run = {"fingerprint": "f" * 32, "fingerprint_parts": {}, "shards": (span,), "rows": span.rows}
        manifest = Manifest(modules=session.modules, dims=session.dims, **run)
        (task,) = RowCapture(session.spec, tmp_path, manifest).cut()
        with named(task):
            done = task.stage.run(task, session)
        codec = codec_for(CodecSettings(), session.modules)
        encoded, norms = codec.zeros(span.rows), np.empty(span.rows, dtype=np.float32)
        read_rows(ShardFiles(tmp_path, span).vectors, codec, span.rows, np.arange(span.rows), encoded, norms)
        return done, codec.decode(encoded) * norms[:, None], norms

    yield capture
    for session in sessions:
        session.close()


def piece(*rows: tuple[int, list[float]]) -> Piece:
    ids = np.array([1, 2], dtype=np.int32)
    parts = tuple(Part(position, ids, ids) for position, _ in rows)
    vectors = torch.tensor([row for _, row in rows])
    return Piece(parts, vectors, vectors.sum(dim=1))


def test_parts_of_a_row_add_up_whichever_batches_they_come_in():
    pieces = [piece((0, [1.0, 2.0]), (1, [5.0, 5.0])), piece((2, [0.0, 1.0]), (0, [3.0, 4.0])), piece((0, [1.0, 1.0]))]
    found = {}
    for positions, rows, values in whole_rows(iter(pieces), np.array([3, 1, 1])):
        for position, row, value in zip(positions.tolist(), rows.tolist(), values.tolist(), strict=True):
            assert position not in found
            found[position] = (row, value)
    assert found == {0: ([5.0, 7.0], 12.0), 1: ([5.0, 5.0], 10.0), 2: ([0.0, 1.0], 1.0)}


def test_a_row_with_nothing_to_score_is_zero_counted_and_listed(captured, configured, written):
    data = written({"text": "The river was named."}, {"text": ""}, {"text": "a"}, {"text": "The list keeps its items."})
    done, _, norms = captured(configured(data=data))
    assert done.zero_rows == (1, 2)
    assert (norms == 0).tolist() == [False, True, True, False]


def test_a_long_row_that_is_split_has_all_its_tokens_scored_once(captured, configured, written):
    long = "The river was named after a cartographer who never saw it. " * 4
    data = written({"text": long}, {"text": "A list."})
    done, _, _ = captured(configured("data.long_rows=split", "data.max_tokens=16", data=data))
    whole, _, _ = captured(configured("data.max_tokens=512", data=data))
    assert done.rows == whole.rows == 2
    assert done.tokens > whole.tokens


def test_a_gradient_that_is_not_finite_names_its_row_and_shard(captured, configured, written, monkeypatch):
    data = written({"text": "The river was named.", "id": "good"}, {"text": "The list keeps.", "id": "bad"})
    capture = Capture.__call__

    def overflow(self, measure, batch):
        rows, values = capture(self, measure, batch)
        rows[[place for place, position in enumerate(batch.positions) if position == 1], 0] = float("inf")
        return rows, values

    monkeypatch.setattr(Capture, "__call__", overflow)
    with pytest.raises(CaptureError) as caught:
        captured(configured("data.quarantine=0", data=data))
    assert str(caught.value).startswith("shard-00000 (rows 0 to 1): The gradient of Row 1 (counted from 0, id 'bad')")


def test_an_error_about_the_data_keeps_its_kind_and_gains_the_shard(captured, configured, written):
    data = written({"text": "word " * 900}, {"text": "short"})
    with pytest.raises(DataError, match=r"^shard-00000 \(rows 0 to 1\): Row 0 .*positions"):
        captured(configured("data.max_tokens=4096", family="gpt2", data=data))


def test_a_classifier_captures_its_labelled_rows(captured, configured):
    done, rows, norms = captured(configured(family="bert"), stop=6)
    assert done.zero_rows == ()
    assert np.linalg.norm(rows, axis=1) == pytest.approx(norms, rel=1e-2)
