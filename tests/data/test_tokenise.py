"""Which tokens of each shape are scored, and that long rows lose none and score none twice."""

import copy
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import processors

from influence.data.dataset import DataSettings
from influence.data.example import (
    Example,
    MessagesContent,
    PromptContent,
    TextContent,
    TokenContent,
    readable_text,
)
from influence.data.tokenise import NOT_SCORED, readable, tokenise
from influence.errors import DataError

FEW = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def data(**settings) -> DataSettings:
    return DataSettings(path="unread", **settings)


def row(content, number=0, label=None) -> Example:
    return Example(number, f"id-{number}", readable_text(content), content, label=label)


def text(string, number=0, label=None) -> Example:
    return row(TextContent(string), number, label)


def scored_text(part, tokeniser) -> str:
    return tokeniser.decode(part.input_ids[part.labels != NOT_SCORED])


def test_all_tokens_of_a_text_but_the_first_are_scored(tokenizer):
    (part,) = tokenise([text("In winter the harbour freezes.")], tokenizer, data())
    assert part.input_ids.dtype == part.labels.dtype == np.int32
    assert part.input_ids.tolist() == tokenizer("In winter the harbour freezes.")["input_ids"]
    assert part.labels[0] == NOT_SCORED
    np.testing.assert_array_equal(part.labels[1:], part.input_ids[1:])
    assert part.scored == len(part.input_ids) - 1
    assert part.label is None


@pytest.mark.parametrize(("string", "tokens"), [("", 0), ("z", 1)])
def test_a_text_of_no_or_one_token_has_a_part_with_nothing_scored(tokenizer, string, tokens):
    (part,) = tokenise([text(string)], tokenizer, data())
    assert (len(part.input_ids), part.scored) == (tokens, 0)


@pytest.mark.parametrize("long_rows", ["truncate", "split"])
def test_a_text_of_a_hundred_thousand_tokens_neither_fails_nor_warns(tokenizer, long_rows, caplog, capfd, monkeypatch):
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 64
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        parts = tokenise([text("~ " * 50_000)], short, data(long_rows=long_rows))
    assert all(len(part.input_ids) <= 512 for part in parts)
    assert sum(part.scored for part in parts) == (511 if long_rows == "truncate" else 99_999)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_truncation_keeps_the_first_tokens(tokenizer):
    (whole,) = tokenise([text("The river was named after a cartographer.")], tokenizer, data())
    (part,) = tokenise([text("The river was named after a cartographer.")], tokenizer, data(max_tokens=5))
    np.testing.assert_array_equal(part.input_ids, whole.input_ids[:5])
    np.testing.assert_array_equal(part.labels, whole.labels[:5])


@FEW
@given(st.integers(0, 40), st.integers(2, 9), st.data())
def test_split_parts_score_every_scored_token_exactly_once_in_its_place(tokenizer, length, most, draw):
    labels = tuple(
        token if draw.draw(st.booleans()) else NOT_SCORED for token in range(2, length + 2)
    )  # every token its own number, so that none can stand for another
    content = TokenContent(tuple(range(2, length + 2)), labels)
    parts = tokenise([text("before"), row(content, 1)], tokenizer, data(max_tokens=most, long_rows="split"))
    parts = [part for part in parts if part.position == 1]
    assert all(len(part.input_ids) <= most for part in parts)
    assert len(parts) == 1 or all(len(part.input_ids) >= 2 for part in parts), "a part of one token scores nothing"
    scored = [(before, own) for part in parts for before, own in scored_pairs(part)]
    assert scored == [(token - 1, token) for token in labels[1:] if token != NOT_SCORED]


def scored_pairs(part):
    scored = np.flatnonzero(part.labels != NOT_SCORED)
    return [(int(part.input_ids[s - 1]), int(part.labels[s])) for s in scored]


def test_parts_point_to_the_example_they_come_from(tokenizer):
    examples = [text("a river in winter"), text(""), row(PromptContent("a", " list")), row(TokenContent((3, 4)))]
    parts = tokenise(examples, tokenizer, data(max_tokens=3, long_rows="split"))
    positions = [part.position for part in parts]
    assert positions == sorted(positions)
    assert set(positions) == {0, 1, 2, 3}


def test_only_the_completion_is_scored(tokenizer):
    (part,) = tokenise([Example.query("The list keeps", " its items.")], tokenizer, data())
    assert scored_text(part, tokenizer) == " its items."


def test_a_token_that_straddles_the_boundary_is_scored(tokenizer):
    assert tokenizer.tokenize("\nThe")[1:] == ["The"]
    (part,) = tokenise([Example.query("\nTh", "e")], tokenizer, data())
    assert scored_text(part, tokenizer) == "The"


@pytest.fixture(params=[False, True], ids=["", "offsets-without-spaces"])
def offsets(request, tokenizer):
    """The tokeniser, and one like GPT-2's, whose offsets leave out the spaces around a token."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=request.param)
    return own


@FEW
@given(st.text(max_size=12), st.text(max_size=12))
def test_scored_tokens_are_the_fewest_that_hold_the_completion(offsets, prompt, completion):
    (part,) = tokenise([Example.query(prompt, completion)], offsets, data())
    scored = part.labels != NOT_SCORED
    assert part.input_ids.tolist() == offsets(prompt + completion)["input_ids"]
    first = int(scored.argmax()) if scored.any() else len(scored)
    assert scored[first:].all()
    # Bytes, because a token may hold a part of a character.
    sizes = [len(piece) for piece in offsets.convert_ids_to_tokens(part.input_ids.tolist())]
    assert sum(sizes[: first + 1]) > len(prompt.encode()) or first == len(scored)
    if first > 1:
        assert sum(sizes[:first]) <= len(prompt.encode())


def test_an_empty_completion_scores_nothing_and_an_empty_prompt_all_but_the_first(tokenizer):
    nothing, rest = tokenise([Example.query("a set", ""), Example.query("", "a set")], tokenizer, data())
    assert nothing.scored == 0
    assert rest.scored == len(rest.input_ids) - 1 > 0


TALK = (
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "In the harbour."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Frozen."},
)


def test_only_the_assistants_turns_are_scored(tokenizer):
    (part,) = tokenise([row(MessagesContent(TALK))], tokenizer, data())
    assert tokenizer.decode(part.input_ids) == tokenizer.apply_chat_template(list(TALK), tokenize=False)
    assert scored_text(part, tokenizer) == "In the harbour.<|end|>Frozen.<|end|>"


def test_messages_without_an_assistant_score_nothing(tokenizer):
    (part,) = tokenise([row(MessagesContent(TALK[:1]))], tokenizer, data())
    assert part.scored == 0
    assert len(part.input_ids) > 0


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ messages | length }}{{ messages[0]['content'] }}", "renders the earlier ones differently"),
        ("{{ raise_exception('users only') }}", "users only"),
    ],
)
def test_messages_that_the_template_cannot_render_are_named_by_row(tokenizer, template, said):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    with pytest.raises(DataError, match="Row 7") as caught:
        tokenise([row(MessagesContent(TALK), 7)], other, data())
    assert said in str(caught.value)


def test_given_labels_are_kept_but_for_the_first(tokenizer):
    (part,) = tokenise([row(TokenContent((5, 6, 7, 8), (5, NOT_SCORED, 7, 9)))], tokenizer, data())
    assert part.input_ids.tolist() == [5, 6, 7, 8]
    assert part.labels.tolist() == [NOT_SCORED, NOT_SCORED, 7, 9]


@pytest.mark.parametrize("column", ["input_ids", "labels"])
def test_tokens_outside_the_vocabulary_are_named_by_row(tokenizer, column):
    size = len(tokenizer)
    content = TokenContent((1, size)) if column == "input_ids" else TokenContent((1, 2), (1, size))
    with pytest.raises(DataError, match=f"Row 3 .*'{column}' holds {size}, but the tokeniser's vocabulary ends at"):
        tokenise([row(content, 3)], tokenizer, data())


def test_tokens_are_decoded_for_people(tokenizer):
    ids = tuple(tokenizer("the harbour")["input_ids"])
    assert readable(row(TokenContent(ids)), tokenizer) == "the harbour"
    assert readable(text("as it is"), tokenizer) == "as it is"


def test_the_end_of_sequence_is_scored_where_asked_for(tokenizer):
    examples = [
        text("a list", 0),
        row(PromptContent("a", " list"), 1),
        text("a list<|end|>", 2),
        row(TokenContent((5, 6)), 3),
        Example.query("a", " list"),
    ]
    parts = tokenise(examples, tokenizer, data(append_eos=True))
    end = tokenizer.eos_token_id
    ends = [part.input_ids.tolist().count(end) for part in parts]
    assert ends == [1, 1, 1, 0, 0]
    assert [part.labels[-1] == end for part in parts] == [True, True, True, False, False]


def test_a_missing_end_of_sequence_token_is_said(tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        tokenise([text("a")], endless, data(append_eos=True))


def test_a_slow_tokeniser_is_refused_where_characters_matter(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(DataError, match="need a fast tokeniser"):
        tokenise([Example.query("a", "b")], tokenizer, data())


@pytest.mark.parametrize(("label", "number"), [(2, 2), ("2", 2), ("good", 1), ("bad", 0)])
def test_a_class_is_given_by_number_or_name(tokenizer, label, number):
    names = {"bad": 0, "good": 1, "odd": 2}
    (part,) = tokenise([text("a list", label=label)], tokenizer, data(), "sequence_classification", names)
    assert part.label == number
    assert (part.labels == NOT_SCORED).all()
    assert part.scored == 1


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (None, "has no label"),
        (3, "there is no class 3"),
        (-1, "there is no class -1"),
        ("fair", "there is no class 'fair'"),
        ("1", "names class 0 and numbers another"),
    ],
)
def test_a_class_that_is_none_is_named_by_row_with_those_there_are(tokenizer, label, said):
    names = {"1": 0, "2": 1, "3": 2}
    with pytest.raises(DataError, match="Row 9") as caught:
        tokenise([text("a", 9, label)], tokenizer, data(), "sequence_classification", names)
    assert said in str(caught.value)


def test_a_classified_row_is_cut_but_never_split(tokenizer):
    long = text("a list keeps its items", label=0)
    (part,) = tokenise([long], tokenizer, data(max_tokens=3), "sequence_classification")
    assert len(part.input_ids) == 3
    with pytest.raises(DataError, match="long_rows: truncate"):
        tokenise([long], tokenizer, data(long_rows="split"), "sequence_classification")


def test_a_classifier_refuses_prompts_by_row(tokenizer):
    with pytest.raises(DataError, match="Row 4"):
        tokenise([row(PromptContent("a", "b"), 4, 1)], tokenizer, data(), "sequence_classification")


def test_examples_of_all_shapes_are_tokenised_as_each_is_alone(tokenizer):
    examples = [
        text("a river"),
        row(MessagesContent(TALK)),
        row(PromptContent("the", " ice")),
        row(TokenContent((4, 5, 6))),
        text("the ferries wait"),
    ]
    for position, part in enumerate(tokenise(examples, tokenizer, data())):
        (alone,) = tokenise([examples[position]], tokenizer, data())
        assert part.position == position
        np.testing.assert_array_equal(part.input_ids, alone.input_ids)
        np.testing.assert_array_equal(part.labels, alone.labels)


@pytest.fixture
def enclosing(tokenizer):
    """A tokeniser that puts a token of its own before and after every text, as BERT's does."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A <|pad|>", special_tokens=[("<|end|>", own.eos_token_id), ("<|pad|>", own.pad_token_id)]
    )
    return own


@pytest.mark.parametrize("prompt", ["", "the ice"])
def test_a_completion_after_a_token_of_the_tokenisers_own_is_scored_whole(enclosing, prompt):
    (part,) = tokenise([Example.query(prompt, " breaks")], enclosing, data())
    assert scored_text(part, enclosing) == " breaks<|pad|>"


def test_cutting_a_classified_row_keeps_the_tokens_around_it(enclosing):
    (part,) = tokenise([text("a list keeps", label=1)], enclosing, data(max_tokens=4), "sequence_classification")
    assert len(part.input_ids) == 4
    assert (part.input_ids[0], part.input_ids[-1]) == (enclosing.eos_token_id, enclosing.pad_token_id)
