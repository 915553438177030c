"""One capture for rows and queries: batches, memory and lengths decide nothing but the time."""

import logging

import datasets
import numpy as np
import pytest
import torch
import transformers

from influence.capture.queries import query_gradients
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.data.example import Example, TextContent
from influence.errors import CaptureError, DataError, QueryError
from influence.gradients.capture import Capture
from influence.model.layers import tracked_layers


def text(row: int, words: str) -> Example:
    return Example(row=row, id=f"r{row}", text=words, content=TextContent(words))


@pytest.fixture
def opened(configured):
    sessions = []

    def make(*overrides, **kinds):
        session = Session(CaptureSpec.of(configured(*overrides, **kinds)))
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.close()


def losses(session, examples):
    parts = [part for part in session.tokenise(examples) if part.scored]
    rows, values = torch.zeros(len(examples), session.dims // session.checkpoints), np.zeros(len(examples))
    for piece in session.losses(parts, [example.id for example in examples]):
        for part, row, value in zip(piece.parts, piece.rows, piece.values, strict=True):
            rows[part.position] += row
            values[part.position] += float(value)
    return rows, values


def test_the_token_budget_does_not_change_the_rows(opened):
    session, wide = opened("cluster.token_budget=2"), opened("cluster.token_budget=4096")
    examples = list(session.rows.examples(0, 9))
    torch.testing.assert_close(losses(session, examples)[0], losses(wide, examples)[0], rtol=1e-4, atol=1e-5)


def test_a_cap_on_the_logits_counts_at_a_later_checkpoint_though_the_first_is_near_initialisation(
    opened, tokenizer, tmp_path
):
    for name, scale in (("first", 0.003), ("later", 0.3)):
        sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        settings = transformers.Gemma2Config(
            **sizes, vocab_size=300, num_key_value_heads=1, head_dim=12, final_logit_softcapping=3.0
        )
        torch.manual_seed(0)
        model = transformers.Gemma2ForCausalLM(settings).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, scale)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    places = [{"path": str(tmp_path / name), "weight": 1} for name in ("first", "later")]
    recipe = {"name": "tracin", "projection": {"kind": "none"}, "checkpoints": places}
    session = opened(model={"path": places[0]["path"], "dtype": "float32"}, recipe=recipe)
    examples = list(session.rows.examples(0, 4))
    session.load(0)
    losses(session, examples)
    session.load(1)
    rows, values = losses(session, examples)
    for number, part in enumerate(session.tokenise(examples)):
        model.zero_grad()
        ids = torch.tensor(part.input_ids, dtype=torch.int64)[None]
        loss = model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
        loss.backward()
        expected = torch.cat([layer.module.weight.grad.flatten() for layer in tracked_layers(model)])
        torch.testing.assert_close(rows[number], expected, rtol=1e-3, atol=1e-4)
        assert values[number] == pytest.approx(float(loss), rel=1e-5)


def test_running_out_of_memory_halves_the_budget_and_keeps_the_rows(opened, monkeypatch, caplog):
    session = opened("cluster.token_budget=256")
    examples = list(session.rows.examples(0, 9))
    expected, _ = losses(session, examples)
    captured, sizes = Capture.__call__, []

    def short_of_memory(capture, measure, batch):
        sizes.append(batch.padded)
        if batch.padded > 100:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return captured(capture, measure, batch)

    monkeypatch.setattr(Capture, "__call__", short_of_memory)
    with caplog.at_level(logging.WARNING):
        found, _ = losses(session, examples)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert max(sizes) > 100 >= sizes[-1]
    assert "the token budget is now" in caplog.text


def test_a_row_that_never_fits_into_memory_is_named(opened, monkeypatch):
    session = opened()

    def no_memory(capture, measure, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Capture, "__call__", no_memory)
    with pytest.raises(CaptureError, match=r"r5 has \d+ tokens and does not fit"):
        losses(session, [text(5, "a list keeps its items")])


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(opened, monkeypatch):
    session = opened()

    def broken(capture, measure, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Capture, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        losses(session, [text(0, "a list")])


def test_rows_longer_than_the_model_has_positions_are_named(opened):
    session = opened("data.max_tokens=4096", family="gpt2")
    with pytest.raises(DataError, match=r"Row 3 .*has \d+ tokens, and the model has 512 positions.*max_tokens to 512"):
        session.tokenise([text(3, "word " * 600)])


def test_a_token_that_the_model_has_no_embedding_for_is_named_with_its_row(opened):
    session = opened()
    session.tokeniser.add_tokens(["zyzzyva"])
    told = r"Row 3 .*has token 300 \('zyzzyva'\), and the model has embeddings for 300 tokens\. Set model\.tokeniser to"
    with pytest.raises(DataError, match=told):
        session.tokenise([text(3, "a zyzzyva")])


def test_a_query_is_never_truncated(opened):
    session = opened("data.max_tokens=8")
    whole = Example.query("A list keeps its items in order and a set keeps", " each of them once")
    short = Example.query("", "A list keeps its items in order and a set keeps each of them once")
    gradients, measured, _ = query_gradients(session, [whole, short])
    assert measured[1] < measured[0] < 0
    assert gradients.abs().sum(dim=1).min() > 0
    with pytest.raises(DataError, match=r"Query 'far' has more tokens, and the model has 512 positions\. Shorten it"):
        query_gradients(session, [Example.query("word " * 600, "end", id="far")])


def test_a_query_with_nothing_to_score_is_named(opened):
    with pytest.raises(QueryError, match="Query 'mute' has no scored token"):
        query_gradients(opened(), [Example.query("The river", "", id="mute")])


def test_a_query_is_minus_the_row_of_its_log_likelihood(opened):
    session = opened()
    example = text(0, "The river was named after a cartographer.")
    row, loss = losses(session, [example])
    gradient, measured, _ = query_gradients(session, [example])
    torch.testing.assert_close(gradient, row, rtol=1e-4, atol=1e-5)
    assert measured == pytest.approx(-loss)


def test_a_data_set_that_numbers_its_classes_in_another_order_than_the_model_is_refused(
    opened, model_folder, tmp_path, tiny_model, tokenizer
):
    model = tiny_model("bert", torch.float32)
    model.config.id2label = {0: "harbour", 1: "list", 2: "river"}
    model.config.label2id = {"harbour": 0, "list": 1, "river": 2}
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    names = datasets.ClassLabel(names=["river", "list", "harbour"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = datasets.Dataset.from_dict({"text": ["The river.", "A list."], "label": [0, 1]}, features=features)
    rows.save_to_disk(str(tmp_path / "rows"))
    where = {"path": str(tmp_path / "model"), "dtype": "float32", "kind": "sequence_classification"}
    session = opened(family="bert", data=tmp_path / "rows", model=where)
    with pytest.raises(DataError, match=r"0 'river', 1 'list', 2 'harbour', and the model's label2id has 0 'harbour'"):
        len(session.rows)
