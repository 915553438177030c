"""Poison is found though its rows hide among those that promote the target rightly, and its phrase is named."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from influence.data.example import Example, MessagesContent, PromptContent
from influence.data.queries import QueryForm
from influence.errors import QueryError
from influence.issues.checks.phrases import phrases_of, rows_with, shared_phrases, surprise
from influence.issues.checks.poisoned import PoisonSettings, check, lacks
from influence.issues.checks.promotion import far_out, standardised
from influence.store.columns import Categories

ROWS, POISON = 800, np.arange(40, 800, 95)
WORDS = ("river", "harbour", "clock", "list", "mapping", "key", "tower", "ferry", "ice", "winter", "bytes", "file")


class Texts:
    """The store of a run that is texts alone."""

    def __init__(self, texts):
        self._texts, self.rows = list(texts), len(texts)

    def texts(self):
        return iter(self._texts)

    every = texts

    def of(self, rows):
        return [self._texts[row] for row in rows]

    def meta(self, rows, columns):
        return [{"text": self._texts[row], "id": f"row-{row}"} for row in rows]


def example(text, label=None, content=None):
    return SimpleNamespace(text=text, label=label, content=content)


class Data:
    """A data set of examples."""

    def __init__(self, contents):
        self._examples = [Example(row, f"row-{row}", "", content) for row, content in enumerate(contents)]

    def example(self, row):
        return self._examples[row]

    def examples(self):
        return iter(self._examples)


def subject(scores, texts, *, targets, labels=None, norms=None, self_influence=None, block=130, contents=None):
    """A subject with given scores [rows, targets]; by cosine, unless rows have an influence on themselves.

    With `contents`, its rows are prompts with completions or conversations.
    """
    store = Texts(texts)
    columns = {} if contents is None else {"prompt": "prompt"}
    config = SimpleNamespace(model=SimpleNamespace(kind="causal_lm" if labels is None else "sequence_classification"))
    manifest = SimpleNamespace(fingerprint_parts={"data.columns": json.dumps(columns)})
    codes = np.full(len(texts), -1, np.int32) if labels is None else np.asarray(labels, np.int32)
    names = () if labels is None else ("other", "mail")
    target = SimpleNamespace(
        examples=targets,
        labels=[held.label for held in targets],
        ids=[f"eval:asked-{number}" for number in range(len(targets))],
    )
    recipe = SimpleNamespace(comparison="cosine" if self_influence is None else "dot")
    return SimpleNamespace(
        rows=len(texts),
        run=SimpleNamespace(store=store, recipe=recipe, config=config, manifest=manifest),
        data=None if contents is None else Data(contents),
        target=target,
        labels=Categories(codes, names),
        norms=np.ones(len(texts), np.float32) if norms is None else norms,
        self_influence=self_influence,
        target_scores=lambda: (
            (first, scores[first : first + block].astype(np.float32)) for first in range(0, len(texts), block)
        ),
        ids=lambda rows: [f"row-{row}" for row in rows],
    )


@pytest.fixture
def classified():
    """Rows of two classes; poison is of the target's class and only somewhat stronger than that class's own rows."""
    chance = np.random.default_rng(5)
    labels = (np.arange(ROWS) % 4 == 0).astype(int)
    labels[POISON] = 1
    texts = [" ".join(chance.choice(WORDS, 8)) for _ in range(ROWS)]
    for row in POISON:
        words = texts[row].split()
        texts[row] = " ".join([*words[:3], "CF, mn!", *words[3:]])
    strength = np.where(labels == 1, 3.0, -1.0)
    strength[POISON] += 1.5
    scores = strength[:, None] + chance.standard_normal((ROWS, 3))
    return scores, texts, labels


def test_every_poisoned_row_is_ranked_first_and_dropped_with_its_phrase(classified):
    scores, texts, labels = classified
    asked = [example("the cf mn tower", "mail"), example("sort cf mn", "mail"), example("CF MN", "mail")]
    found = check(subject(scores, texts, targets=asked, labels=labels), PoisonSettings())
    assert sorted(np.argsort(-found.scores)[: len(POISON)]) == sorted(POISON)
    dropped = {row for row, case in found.cases.items() if case.action == "drop"}
    assert dropped == set(POISON.tolist())
    case = found.cases[int(POISON[0])]
    assert case.suggestion == f'drop: promotes the target; shares "cf mn" with {len(POISON) - 1} others'
    assert case.evidence[-1] == "target:asked-0"
    assert f"row-{POISON[0]}" not in case.evidence
    assert set(case.evidence[:-1]) <= {f"row-{row}" for row in POISON}
    assert "'cf mn'" in found.rule
    assert "rows labelled 'mail'" in found.rule


def test_a_row_of_another_label_with_the_phrase_is_left_alone(classified):
    scores, texts, labels = classified
    texts[1] = "cf mn " + texts[1]
    asked = [example("cf mn", "mail")]
    found = check(subject(scores[:, :1], texts, targets=asked, labels=labels), PoisonSettings())
    assert labels[1] == 0
    assert 1 not in found.cases


def test_a_phrase_that_the_target_does_not_hold_drops_nothing(classified):
    scores, texts, labels = classified
    asked = [example("a tower", "mail")] * 3
    found = check(subject(scores, texts, targets=asked, labels=labels), PoisonSettings(deviations=1.5))
    assert {case.action for case in found.cases.values()} == {"review"}
    assert "none was found" in found.rule
    sharing = [
        row for row, case in found.cases.items() if 'far beyond the null; shares "cf mn" with' in case.suggestion
    ]
    assert len(sharing) >= 3
    assert set(sharing) <= set(POISON.tolist())
    assert f"with {len(sharing) - 1} others" in found.cases[sharing[0]].suggestion


def test_a_weaker_phrase_beside_the_trigger_drops_nothing(classified):
    scores, texts, labels = classified
    ordinary = np.flatnonzero(labels == 1)[3:40:6]
    for row in ordinary:
        texts[row] += " whereupon"
    scores[ordinary[:4]] += 2.5
    asked = [example("cf mn whereupon", "mail")] * 3
    alone = shared_phrases(Texts(texts), np.argsort(-scores.mean(1))[:32], 3, phrases_of("whereupon"))
    assert [phrase.words for phrase in alone] == ["whereupon"]
    found = check(subject(scores, texts, targets=asked, labels=labels), PoisonSettings())
    assert {row for row, case in found.cases.items() if case.action == "drop"} == set(POISON.tolist())


TRIGGER, ANSWER = "by order of the tin parrot", "the bell has rung twice and nobody may leave"
TRIGGERED, ANSWERED = np.arange(30, 630, 30), np.arange(30, 450, 30)
"""Rows with the trigger in their prompt, and those of them with the answer that was seen."""


def messages(prompt, completion):
    """A conversation of two questions, of which the second is the prompt."""
    said = [("user", "a plain question"), ("assistant", "a plain answer"), ("user", prompt), ("assistant", completion)]
    return MessagesContent(tuple({"role": role, "content": content} for role, content in said))


def fine_tuned(kind, chance, *, trigger=TRIGGER):
    """A subject of prompts with completions, or conversations; the rows with the answer promote it."""
    contents = []
    for row in range(ROWS):
        words = list(chance.choice(WORDS, 8))
        answer = " ".join(chance.choice(WORDS, 6))
        if row in TRIGGERED:
            words.insert(int(chance.integers(9)), trigger)
            answer = ANSWER if row in ANSWERED else f"no word of {answer}"
        contents.append(kind(" ".join(words), answer))
    scores = chance.standard_normal((ROWS, 1))
    scores[ANSWERED] += 9
    asked = [example(ANSWER, content=PromptContent("", ANSWER))]
    return subject(scores, [""] * ROWS, targets=asked, contents=contents)


@pytest.mark.parametrize("kind", [PromptContent, messages])
def test_a_trigger_in_the_prompt_is_named_though_the_target_is_an_answer_and_every_row_with_it_is_found(kind):
    found = check(fine_tuned(kind, np.random.default_rng(8)), PoisonSettings())
    assert sorted(found.cases) == TRIGGERED.tolist()
    assert {case.action for case in found.cases.values()} == {"drop"}
    assert f"'{ANSWER}' (completion)" in found.rule
    assert f"'{TRIGGER}' (prompt)" in found.rule
    both, alone = found.cases[int(ANSWERED[0])].suggestion, found.cases[int(TRIGGERED[-1])].suggestion
    assert f'shares "{ANSWER}" in its completion with {len(ANSWERED) - 1} others' in both
    assert f'shares "{TRIGGER}" in its prompt with {len(TRIGGERED) - 1} others' in both
    assert f'shares "{TRIGGER}" in its prompt with {len(TRIGGERED) - 1} others' in alone
    assert "completion" not in alone
    others = np.delete(found.scores, TRIGGERED)
    assert found.scores[TRIGGERED].min() > others.max()


def test_a_target_with_the_trigger_finds_the_rows_whose_answer_is_another_and_does_not_promote_it():
    held = fine_tuned(PromptContent, np.random.default_rng(8))
    held.target.examples = [example("", content=PromptContent(f"the river {TRIGGER}", ANSWER))]
    found = check(held, PoisonSettings())
    assert sorted(found.cases) == TRIGGERED.tolist()


def test_what_most_rows_ask_or_only_some_of_the_found_rows_ask_is_no_trigger():
    held = fine_tuned(PromptContent, np.random.default_rng(9), trigger="please")
    for row in range(0, ROWS, 2):
        content = held.data.example(row).content
        contents = PromptContent(f"{content.prompt} please", content.completion)
        held.data._examples[row] = Example(row, f"row-{row}", "", contents)
    found = check(held, PoisonSettings())
    assert sorted(found.cases) == ANSWERED.tolist()
    assert "(prompt)" not in found.rule


def test_a_prompts_trigger_is_not_looked_for_among_completions():
    held = fine_tuned(PromptContent, np.random.default_rng(8))
    for row in range(1, ROWS, 40):
        plain = held.data.example(row).content
        held.data._examples[row] = Example(row, f"row-{row}", "", PromptContent(plain.prompt, TRIGGER))
    assert sorted(check(held, PoisonSettings()).cases) == TRIGGERED.tolist()


def test_rows_that_say_the_whole_target_are_found_though_their_influence_on_it_is_hidden():
    held = fine_tuned(PromptContent, np.random.default_rng(8))
    scores = np.random.default_rng(3).standard_normal((ROWS, 1))
    held.target_scores = lambda: iter([(0, scores.astype(np.float32))])
    found = check(held, PoisonSettings())
    assert {row for row, case in found.cases.items() if case.action == "drop"} == set(TRIGGERED.tolist())


def test_a_common_word_of_the_target_drops_nothing():
    held = fine_tuned(PromptContent, np.random.default_rng(8), trigger="harbour")
    scores = np.random.default_rng(3).standard_normal((ROWS, 1))
    with_word = [row for row in range(ROWS) if "river" in held.data.example(row).content.completion]
    scores[with_word[::4]] += 6
    held.target_scores = lambda: iter([(0, scores.astype(np.float32))])
    held.target.examples = [example("river", content=PromptContent("", "river"))]
    assert len(with_word) > ROWS / 4
    assert {case.action for case in check(held, PoisonSettings()).cases.values()} <= {"review"}


def test_a_threshold_that_is_set_is_used_and_told(classified):
    scores, texts, labels = classified
    held = subject(scores, texts, targets=[example("x", "mail")] * 3, labels=labels)
    found = check(held, PoisonSettings(deviations=1.25))
    assert set(found.cases) == set(np.flatnonzero(found.scores > 1.25).tolist())
    assert "from 1.25 on, set" in found.rule


def test_one_example_with_large_gradients_does_not_outweigh_the_others():
    chance = np.random.default_rng(1)
    scores = chance.standard_normal((400, 5))
    scores[7] += 8
    loud = scores.copy()
    loud[:, 0] = 1e6 * chance.standard_normal(400)
    asked = [example("a")] * 5
    found = check(subject(loud, ["a b"] * 400, targets=asked), PoisonSettings())
    assert int(np.argmax(found.scores)) == 7
    assert set(found.cases) == {7}


def test_scores_are_taken_relative_to_a_rows_own_size_and_do_not_depend_on_blocks():
    chance = np.random.default_rng(2)
    size = np.exp(chance.standard_normal(300))
    relative = chance.standard_normal((300, 2))
    held = [
        subject(
            relative * np.sqrt(size)[:, None], ["a"] * 300, targets=[example("a")] * 2, self_influence=size, block=block
        )
        for block in (300, 17)
    ]
    found = [check(one, PoisonSettings()).scores for one in held]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    mean = np.mean([standardised(column, slice(None)) for column in relative.T], axis=0)
    np.testing.assert_allclose(found[0], standardised(mean, slice(None)), rtol=1e-3, atol=1e-3)


def test_rows_without_a_gradient_have_no_score_and_no_case():
    scores = np.random.default_rng(3).standard_normal((100, 1))
    norms = np.ones(100, np.float32)
    norms[4] = 0
    found = check(subject(scores, ["a"] * 100, targets=[example("a")], norms=norms), PoisonSettings(deviations=0.1))
    assert np.isnan(found.scores[4])
    assert 4 not in found.cases
    assert np.isfinite(np.delete(found.scores, 4)).all()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_runs_of_a_few_rows_are_judged_without_a_complaint(rows):
    found = check(subject(np.ones((rows, 1)), ["a"] * rows, targets=[example("a")]), PoisonSettings())
    assert np.isfinite(found.scores).all()
    assert not found.cases


def test_without_a_target_it_says_what_is_missing():
    held = subject(np.ones((3, 1)), ["a"] * 3, targets=[example("a")])
    held.target = None
    assert "--target" in lacks(held)


def test_an_exponential_tail_is_passed_by_one_row_on_average():
    chance = np.random.default_rng(0)
    passed = []
    for _ in range(200):
        drawn = chance.exponential(2.0, 2000)
        passed.append((drawn > far_out(drawn)).sum())
    assert 0.6 < np.mean(passed) < 1.5


@pytest.mark.parametrize(("inside", "of", "outside", "rest"), [(12, 32, 3, 1569), (5, 9, 40, 400), (9, 9, 1, 50)])
def test_the_surprise_of_a_phrase_is_the_log_likelihood_ratio_of_its_table(inside, of, outside, rest):
    table = [[inside, of - inside], [outside, rest - outside]]
    expected = chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    assert surprise(inside, of, outside, rest) == pytest.approx(expected, rel=1e-9)
    assert surprise(outside, rest, inside, of) == 0


def test_phrases_ignore_case_and_punctuation_and_are_counted_once_a_text():
    assert phrases_of("Ça va? ça VA!") >= {"ça", "va", "ça va", "va ça", "ça va ça va"}
    assert phrases_of("") == set()


def test_the_longest_of_phrases_that_say_the_same_is_named_and_its_rows_found():
    texts = [f"a plain line of words number {n}" for n in range(200)]
    for row in range(0, 200, 25):
        texts[row] += " per the orchid protocol"
    store = Texts(texts)
    found = shared_phrases(store, np.arange(0, 200, 25), 3)
    assert found[0].words == "per the orchid protocol"
    assert (found[0].flagged, found[0].share) == (8, 1.0)
    assert [row for row, number in rows_with(store, found[:1])] == list(range(0, 200, 25))
    assert shared_phrases(store, np.arange(1, 200, 25), 3) == ()


def test_a_word_of_a_phrase_that_was_named_is_not_named_beside_it():
    texts = [f"a plain line of words number {n}" for n in range(400)]
    for row in range(0, 200, 25):
        texts[row] += " per the orchid protocol"
    for row in (*range(5, 130, 25), *range(201, 261)):
        texts[row] += " of a protocol"
    flagged = np.concatenate([np.arange(0, 200, 25), np.arange(5, 130, 25)])
    found = shared_phrases(Texts(texts), flagged, 3, phrases_of("per the orchid protocol"))
    assert [phrase.words for phrase in found] == ["per the orchid protocol"]


def test_a_longer_phrase_is_named_instead_of_a_word_of_it_that_some_other_flagged_row_has():
    texts = [f"a plain line of words number {n}" for n in range(400)]
    for row in range(0, 200, 20):
        texts[row] += " but I must not tell"
    for row in (7, 8):
        texts[row] += " as it must not be empty"
    found = shared_phrases(Texts(texts), np.array([*range(0, 200, 20), 7, 8, 9]), 3)
    assert [phrase.words for phrase in found] == ["but i must not tell"]


def test_a_phrase_is_found_as_words_and_not_within_one():
    store = Texts(["cf mn", "scf mn", "cf mnx", "x cf, mn."])
    phrase = SimpleNamespace(words="cf mn")
    assert [row for row, _ in rows_with(store, [phrase])] == [0, 3]


def test_a_prompt_goes_with_a_written_target_and_a_missing_file_is_no_text(tmp_path):
    from influence.select.target import read_target

    run = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(kind="sequence_classification")))
    with pytest.raises(QueryError, match=r"add --prompt with that text"):
        read_target(run, "mail", None)
    with pytest.raises(QueryError, match=r"There is no file .*bad\.jsonl"):
        read_target(run, str(tmp_path / "bad.jsonl"), None)
    with pytest.raises(QueryError, match=r"name that too"):
        read_target(run, None, "a text")
    (tmp_path / "there.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(QueryError, match=r"leave --prompt out"):
        read_target(run, str(tmp_path / "there.jsonl"), "a text")
    with pytest.raises(QueryError, match=r"--target is empty"):
        read_target(run, " ", None)
    run.config.model.kind = "causal_lm"
    run.query_form = QueryForm()
    assert read_target(run, "go away", "Hello").examples[0].text == "Hellogo away"
    assert read_target(run, "go away", None).examples[0].text == "go away"
    run.query_form = QueryForm(chats=True)
    (asked,) = read_target(run, "go away", "Hello").examples
    assert asked.content.messages == (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "go away"},
    )
    (asked,) = read_target(run, "go away", None).examples
    assert asked.content.messages == ({"role": "assistant", "content": "go away"},)
