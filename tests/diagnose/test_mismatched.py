"""Answers to another question are flagged by what their prompt does for them and by who stands beside them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import influence.api as runs
from influence.capture import model_pass
from influence.capture import prompts as prompt_stage
from influence.capture.prompts import Answers, answers_in, other_prompts, remaining
from influence.config import parse_config
from influence.data.tokenise import NOT_SCORED, Part
from influence.errors import QueryError
from influence.issues.checks import mismatched
from influence.issues.checks.mismatched import MismatchedSettings, check, lacks
from influence.issues.checks.registry import parse_settings
from influence.issues.issues import examine
from influence.issues.neighbors import Near
from influence.store.columns import numbers

ROWS, SWAPPED = 400, np.arange(7, 400, 40)


def conversations():
    """Twenty-four rows, of which every third is a conversation of two questions."""
    words = ["river", "harbour", "clock", "list", "mapping", "key"]
    for row in range(24):
        turns = [(f"Where is the {words[row % 6]}?", f"The {words[row % 6]} is in {words[row % 5]} {row}.")]
        turns += [(f"And a {words[row % 4]}?", f"It has {row} of them.")] * (row % 3 == 0)
        yield {
            "id": f"r{row}",
            "messages": [
                {"role": role, "content": content}
                for turn in turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ],
        }


@pytest.fixture(scope="module")
def chat_run(client, model_folder, tmp_path_factory):
    """A run of conversations by an untrained model."""
    folder = tmp_path_factory.mktemp("chats")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in conversations()))
    settings = {
        "model": {"path": str(model_folder("gpt2")), "dtype": "float32"},
        "data": {"path": str(data), "max_tokens": 256},
        "recipe": {"name": "graddot", "projection": {"p": 8, "q": 8}},
        "task": {"reduction": "mean"},
        "store": {"rows_per_shard": 16, "codec": "float16"},
        "cluster": {"token_budget": 256, "workers": 1, "device": "cpu"},
    }
    return runs.build(parse_config(settings, ()), folder / "run")


def loss_alone(model, prompt, answer):
    """−log p of an answer's tokens after a prompt's, one text at a time."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model(ids).logits[0].double().log_softmax(-1)
    return -sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))


def test_losses_are_those_of_each_answer_alone_after_its_prompt_and_after_two_others(chat_run, tmp_path):
    found = list(prompt_stage.prompt_losses(chat_run.config, chat_run.store, tmp_path))
    assert [block.first for block in found] == [0]
    (answers,) = found
    folder = chat_run.config.model.path
    model, tokeniser = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    session = chat_run.session
    spans = [span for part in session.tokenise(list(session.rows.examples())) for span in answers_in(part)]
    assert [span.row for span in spans].count(0) == 2
    own = np.array([loss_alone(model, span.prompt, span.part.input_ids[span.start : span.stop]) for span in spans])
    others = np.mean(
        [
            [
                loss_alone(model, prompt, span.part.input_ids[span.start : span.stop])
                for span, prompt in zip(spans, other_prompts(spans, turn), strict=True)
            ]
            for turn in (0, 1)
        ],
        axis=0,
    )
    share = remaining(own, others)
    for row in range(24):
        mine = [place for place, span in enumerate(spans) if span.row == row]
        worst = max(mine, key=lambda place: share[place])
        assert answers.given[row] == pytest.approx(own[mine].sum(), rel=1e-4)
        assert answers.without[row] == pytest.approx(others[mine].sum(), rel=1e-4)
        assert (answers.number[row], answers.count[row]) == (mine.index(worst) + 1, len(mine))
    assert "Where is the river?" in tokeniser.decode(spans[0].prompt)


def test_a_pass_that_was_killed_goes_on_with_the_blocks_that_are_missing(chat_run, tmp_path, monkeypatch):
    monkeypatch.setattr(model_pass, "ROWS", 8)
    whole = [block.given for block in prompt_stage.prompt_losses(chat_run.config, chat_run.store, tmp_path)]
    (killed,) = tmp_path.glob("*000000000008.json")
    killed.unlink()
    steps = []
    again = list(prompt_stage.prompt_losses(chat_run.config, chat_run.store, tmp_path, steps.append))
    assert (steps[0].done, steps[0].total) == (2, 3)
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate([block.given for block in again]))


def test_a_run_of_conversations_is_examined_and_its_table_says_which_answer(chat_run, tmp_path):
    found = examine(
        chat_run, tmp_path / "i.parquet", parse_settings(["mismatched.threshold=0.1"]), checks=["mismatched"]
    )
    (finding,) = found.findings
    assert np.isfinite(finding.scores).all()
    assert finding.cases
    for row, case in finding.cases.items():
        several = "review: the prompts leave " if row % 3 == 0 else "review: the prompt leaves "
        assert case.suggestion.startswith(several)
        assert ("of answer" in case.suggestion) == (row % 3 == 0)
    assert "Flagged from 0.1 on" in finding.rule
    # The losses of the run stay those of its own reduction.
    assert (numbers(chat_run.store, "loss") < 20).all()


def subject(losses, cosines, norms=None):
    """A subject of ROWS prompts, with the losses (own, others) and each row's cosine with its three nearest rows."""

    class Graph:
        def of(self, rows):
            alike = np.stack([(rows + step) % ROWS for step in (1, 2, 3)], axis=1)
            near = np.repeat(cosines[rows, None], 3, axis=1).astype(np.float32)
            return Near(alike, near, alike, -near)

        def blocks(self, size):
            for first in range(0, ROWS, size):
                yield first, self.of(np.arange(first, min(ROWS, first + size)))

    config = SimpleNamespace(model=SimpleNamespace(kind="causal_lm"))
    manifest = SimpleNamespace(fingerprint_parts={"data.columns": json.dumps({"prompt": "prompt"})})
    return SimpleNamespace(
        rows=ROWS,
        data=object(),
        run=SimpleNamespace(config=config, store=None, manifest=manifest, path="runs/x"),
        norms=np.ones(ROWS) if norms is None else norms,
        graph=Graph(),
        folder=None,
        overrides=(),
        progress=None,
        losses=losses,
        ids=lambda rows: [f"id-{row}" for row in rows],
    )


@pytest.fixture
def planted(monkeypatch):
    """Prompts take about half of their answers' losses, but of the swapped ones next to nothing."""
    monkeypatch.setattr(mismatched, "prompt_losses", lambda config, store, folder, report: iter(held))
    chance = np.random.default_rng(4)
    without = chance.gamma(4, 10, ROWS) + 5
    left = np.clip(0.5 + 0.08 * chance.standard_normal(ROWS), 0.1, 0.9)
    cosines = np.clip(0.4 + 0.1 * chance.standard_normal(ROWS), 0.05, 1)
    left[SWAPPED], cosines[SWAPPED] = 0.97, 0.06
    ones = np.ones(ROWS, np.int64)
    held = [Answers(0, left * without, without, ones, ones)]
    return subject(left * without, cosines), held


def test_swapped_answers_have_the_strongest_cases_whatever_their_loss_is(planted):
    held, _ = planted
    found = check(held, MismatchedSettings())
    assert set(np.argsort(-found.scores)[: len(SWAPPED)]) == set(SWAPPED)
    assert set(found.cases) >= set(SWAPPED)
    assert len(found.cases) <= len(SWAPPED) + 0.05 * ROWS
    case = found.cases[int(SWAPPED[0])]
    assert case.action == "review"
    assert case.suggestion.startswith("review: the prompt leaves 97% of its answer's loss")
    assert case.evidence == tuple(f"id-{SWAPPED[0] + step}" for step in (1, 2, 3))
    flagged = min(found.scores[row] for row in found.cases)
    assert flagged > max(np.delete(found.scores, list(found.cases)))
    assert "Flagged from 2 on" in found.rule


def test_a_threshold_that_is_set_is_used_and_told(planted):
    held, _ = planted
    found = check(held, MismatchedSettings(threshold=3))
    assert set(found.cases) <= set(np.flatnonzero(found.scores >= 3).tolist())
    assert set(found.cases) >= set(np.flatnonzero(found.scores >= 4).tolist())
    assert "from 3 on" in found.rule
    assert found.rule.endswith(": set.")


def test_rows_without_an_answer_or_a_gradient_are_said_nothing_of(planted):
    held, answers = planted
    answers[0].given[3] = answers[0].without[3] = np.nan
    held.norms[7] = 0
    found = check(held, MismatchedSettings())
    assert np.isnan(found.scores[[3, 7]]).all()
    assert not {3, 7} & set(found.cases)
    assert np.isfinite(np.delete(found.scores, [3, 7])).all()


def test_where_prompts_help_no_answer_no_row_is_flagged(planted):
    held, answers = planted
    answers[0].given[:] = answers[0].without
    assert not check(held, MismatchedSettings()).cases


def test_texts_and_classifiers_and_a_few_rows_are_not_examined(planted, tmp_path):
    held, _ = planted
    assert lacks(held) is None
    held.rows = 19
    assert "needs 20 rows or more" in lacks(held)
    held.rows = ROWS
    held.run.manifest.fingerprint_parts["data.columns"] = json.dumps({"text": "text"})
    assert "no prompts with completions and no conversations" in lacks(held)
    held.run.config.model.kind = "sequence_classification"
    assert "no prompts" in lacks(held)


def test_an_answer_has_a_prompt_and_goes_after_one_of_another_row():
    ids = np.arange(10, 20, dtype=np.int32)
    labels = np.full(10, NOT_SCORED, np.int32)
    labels[[3, 4, 7, 8, 9]] = ids[[3, 4, 7, 8, 9]]
    spans = answers_in(Part(0, ids, labels))
    assert [(span.start, span.stop) for span in spans] == [(3, 5), (7, 10)]
    whole = labels.copy()
    whole[1:] = ids[1:]
    assert answers_in(Part(1, ids, whole)) == []
    other = answers_in(Part(2, ids + 50, np.where(labels == NOT_SCORED, labels, labels + 50)))
    prompts = other_prompts([*spans, *other], 0)
    assert all(prompt[0] == 60 for prompt in prompts[:2])
    assert all(prompt[0] == 10 for prompt in prompts[2:])
    after = spans[0].after(prompts[0])
    assert after.input_ids[-2:].tolist() == [13, 14]
    assert (after.labels != NOT_SCORED).sum() == 2
    assert after.labels[-2:].tolist() == [13, 14]


def test_it_is_named_where_it_does_not_apply(client, model_folder, corpus_file, tmp_path):
    settings = {
        "model": {"path": str(model_folder("gpt2")), "dtype": "float32"},
        "data": {"path": str(corpus_file), "max_tokens": 32},
        "recipe": {"name": "graddot", "projection": {"p": 4, "q": 4}},
        "cluster": {"token_budget": 256, "workers": 1, "device": "cpu"},
    }
    run = runs.build(parse_config(settings, ()), tmp_path / "run")
    with pytest.raises(QueryError, match=r"mismatched doesn't apply to .*no prompts with completions"):
        examine(run, tmp_path / "i.parquet", parse_settings([]), checks=["mismatched"])
