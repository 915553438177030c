"""A run of chats is asked in chat form, by flags, by a file and in Python; its numbers are those of the template."""

import json

import pyarrow.parquet as pq
import pytest
import torch
import yaml

import influence.api as runs
from influence.data.example import Example, MessagesContent
from influence.errors import FingerprintMismatch, QueryError
from influence.query.evaluation import read_evaluation
from tests.cli.conftest import connected_to, settings

USER = {"role": "user", "content": "Who keeps the lighthouse?"}
SAYS = {"role": "assistant", "content": "The keeper was colour-blind."}
OTHER = "The mayor never saw it."
ROWS = [
    {"messages": [USER, SAYS], "id": "keeper", "topic": "sea"},
    {"messages": [USER, {"role": "assistant", "content": OTHER}], "id": "mayor", "topic": "town"},
    {
        "messages": [SAYS, USER, {"role": "assistant", "content": "A list keeps its items."}],
        "id": "first",
        "topic": "x",
    },
]


@pytest.fixture(scope="module")
def chats(model_folder, tmp_path_factory, client, own_cache):
    """A finished run of three chats, not to be changed."""
    folder = tmp_path_factory.mktemp("chats")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "run.yaml").write_text(yaml.safe_dump(settings(model_folder("llama"), folder / "rows.jsonl")))
    with connected_to(client):
        runs.build(folder / "run.yaml", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def by_hand(tiny_model, tokenizer):
    """`by_hand(messages, turn)`: log p of one turn of the assistant, by the template and the model in float64."""
    model = tiny_model("llama")

    def log_likelihood(messages, turn):
        before = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
        whole = tokenizer(after, add_special_tokens=False, return_offsets_mapping=True)
        with torch.no_grad():
            log_p = model(torch.tensor([whole["input_ids"]])).logits[0].log_softmax(-1)
        return sum(
            float(log_p[place - 1, token])
            for place, (token, (_, end)) in enumerate(zip(whole["input_ids"], whole["offset_mapping"], strict=True))
            if end > len(before)
        )

    return log_likelihood


def test_rows_and_queries_of_chats_have_the_log_likelihood_of_the_rendered_turn(chats, by_hand):
    expected = by_hand([USER, SAYS], 1)
    with runs.open(chats) as run:
        assert run.meta([0])[0]["loss"] == pytest.approx(-expected, rel=1e-4)
        asked = run.query(USER["content"], SAYS["content"], k=1).query
        chat = run.query(messages=[USER, SAYS], contrast=OTHER, k=1).query
        raw = run.query(USER["content"], SAYS["content"], raw=True, k=1).query
    assert asked.log_likelihood == pytest.approx(expected, rel=1e-4)
    assert chat.log_likelihood == pytest.approx(expected, rel=1e-4)
    assert chat.contrast_log_likelihood == pytest.approx(
        by_hand([USER, {"role": "assistant", "content": OTHER}], 1), rel=1e-4
    )
    assert (asked.turns, raw.turns) == (1, None)
    assert raw.log_likelihood != pytest.approx(expected, rel=1e-2)


def test_rows_of_the_training_data_are_queries_and_a_row_scores_highest_for_itself(cli, chats):
    ended = cli("query", chats, "--queries", chats.parent / "rows.jsonl", "-k", 1, "--format", "jsonl")
    assert ended.code == 0, ended.err
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["promoting"][0]["id"] for answer in answers] == ["keeper", "mayor", "first"]
    assert answers[2]["query"]["turns"] == 2
    assert ended.told.count("Columns of the queries that are not read: 'topic'.") == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_messages_are_read_from_a_json_file_and_shown_as_turns(cli, chats, tmp_path, wrapped):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"messages": [USER, SAYS]} if wrapped else [USER, SAYS], indent=1))
    ended = cli("query", chats, "--messages", path, "--contrast", OTHER, "-k", 1)
    assert ended.code == 0, ended.err
    shown = " ".join(ended.out.split())
    assert "user: Who keeps the lighthouse? → assistant: The keeper was colour-blind." in shown
    assert "rather than assistant: The mayor never saw it." in shown
    assert "the assistant's turn is measured" in shown
    assert "<|" not in ended.out


def test_a_prompt_and_completion_of_a_run_of_chats_say_that_they_are_turns(cli, chats):
    flags = ("--prompt", USER["content"], "--completion", SAYS["content"], "-k", 1)
    assert "rendered by the model's chat template" in " ".join(cli("query", chats, *flags).out.split())
    assert "chat template" not in cli("query", chats, *flags, "--raw").out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1", "chat.json can't be read"),
        ('"hello"', "chat.json holds no chat: found a JSON str"),
        ('{"turns": []}', "chat.json holds no chat"),
        ('[{"role": "user", "content": "a"}]', "has no scored token: the assistant says nothing in it"),
        ('[{"role": "user"}]', "message 0 of 'messages' is dict"),
        ('{"messages": [{"role": "assistant", "content": "a b"}], "contrast": "c"}', "has a contrast"),
    ],
)
def test_a_file_that_holds_no_chat_is_named(cli, chats, tmp_path, content, told):
    path = tmp_path / "chat.json"
    path.write_text(content)
    ended = cli("query", chats, "--messages", path, *(("--contrast", "x") if "contrast" in content else ()))
    assert ended.code == 2
    assert told in ended.told
    assert "Traceback" not in ended.err


def test_messages_beside_other_flags_are_refused(cli, chats, tmp_path):
    assert "whole query" in cli("query", chats, "--messages", tmp_path / "c.json", "--prompt", "a").told
    assert "keep one" in cli("query", chats, "--messages", tmp_path / "c.json", "--queries", "q.jsonl").told
    with runs.open(chats) as run, pytest.raises(QueryError, match="no prompt or completion"):
        run.query("a", messages=[USER, SAYS])


def test_scores_of_chats_are_those_of_their_queries(chats):
    with runs.open(chats) as run:
        scores = run.score([{"messages": [USER, SAYS]}, {"prompt": USER["content"], "completion": SAYS["content"]}])
    assert scores[0].tolist() == pytest.approx(scores[1].tolist(), rel=1e-5)


def test_an_evaluation_file_of_prompts_is_read_as_the_chats_of_the_run(chats, tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"prompt": USER["content"], "completion": SAYS["content"]}) + "\n")
    with runs.open(chats) as run:
        (example,) = read_evaluation(run, path).examples
    assert example.content == MessagesContent((USER, SAYS))


def test_a_run_of_chats_that_an_earlier_release_read_otherwise_is_refused(chats):
    with runs.open(chats) as run:
        run.manifest.fingerprint_parts.pop("data.reading")
        with pytest.raises(FingerprintMismatch, match=r"read chats otherwise.*Build the run again"):
            run.query(messages=[USER, SAYS])


def test_a_run_whose_prompts_and_completions_are_messages_is_asked_as_chats(cli, model_folder, in_process, tmp_path):
    row = {"prompt": [USER], "completion": [SAYS]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 3)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(model_folder("llama"), tmp_path / "rows.jsonl")))
    assert cli("build", "-c", tmp_path / "run.yaml", "--out", tmp_path / "run").code == 0
    with runs.open(tmp_path / "run") as run:
        asked = run.query(USER["content"], SAYS["content"], k=1).query
        assert (asked.prompt, asked.completion, asked.turns) == (
            "user: Who keeps the lighthouse?",
            "assistant: The keeper was colour-blind.",
            1,
        )
        assert asked.log_likelihood == pytest.approx(-run.meta([0])[0]["loss"], rel=1e-5)


def test_answers_that_max_tokens_cuts_off_are_named_with_the_length_that_keeps_them(
    cli, run_file, written, in_process, tmp_path
):
    row = {"messages": [{**USER, "content": USER["content"] * 20}, SAYS]}
    ended = cli("build", "-c", run_file(data=written(row, row)), "--out", tmp_path / "run")
    assert ended.code == 2
    assert "data.max_tokens (64) cuts off every scored token of 2 of 2 rows" in ended.told
    length = int(ended.told.split("Set data.max_tokens to ")[1].split(" ")[0])
    # The same name, which the workers that stayed have read already.
    config = run_file(data=written(row, row, {"messages": [USER, SAYS]}))
    ended = cli("build", "-c", config, "--out", tmp_path / "other")
    assert ended.code == 0
    assert "cuts off every scored token of 2 of 3 rows" in ended.told
    ended = cli("build", "-c", config, "--out", tmp_path / "third", "--set", f"data.max_tokens={length}")
    assert "cuts off" not in ended.told


def test_scores_of_a_file_are_of_the_bare_texts_where_asked_raw(cli, chats, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": USER["content"], "completion": SAYS["content"]}) + "\n")
    found = {}
    for flags in ((), ("--raw",)):
        out = tmp_path / f"scores{len(flags)}.parquet"
        assert cli("score", chats, "--queries", tmp_path / "q.jsonl", "--out", out, *flags).code == 0
        found[flags] = [row[0] for row in pq.read_table(out).column("scores").to_pylist()]
    with runs.open(chats) as run:
        assert found[()] == pytest.approx(run.score([{"messages": [USER, SAYS]}])[0].tolist(), rel=1e-4)
        assert found["--raw",] == pytest.approx(
            run.score([Example.query(USER["content"], SAYS["content"])])[0].tolist(), rel=1e-4
        )
