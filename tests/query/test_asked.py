"""What may be asked: every form of a row is a query, and a misspelt key is none."""

import logging

import pytest

from influence.data.columns import Columns
from influence.data.example import Example, MessagesContent, PromptContent, TextContent, TokenContent
from influence.data.queries import QueryForm, as_example, read_queries
from influence.errors import DataError, QueryError

USER, SAYS = {"role": "user", "content": "What is red?"}, {"role": "assistant", "content": "The river."}
TOOLS = [{"type": "function", "function": {"name": "look"}}]
CHATS = QueryForm(chats=True)


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ({"text": "a river"}, TextContent("a river")),
        ({"prompt": "a", "completion": " river"}, PromptContent("a", " river")),
        ({"completion": " river"}, PromptContent("", " river")),
        ({"messages": [USER, SAYS]}, MessagesContent((USER, SAYS))),
        ({"messages": [USER, SAYS], "tools": TOOLS}, MessagesContent((USER, SAYS), {"tools": TOOLS})),
        ({"prompt": [USER], "completion": [SAYS]}, MessagesContent((USER, SAYS), {}, 1)),
        ({"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1]}, TokenContent((5, 6))),
        ({"text": "a river", "prompt": None, "source": "web", "grade": 3}, TextContent("a river")),
    ],
)
def test_a_row_of_any_form_is_a_query(query, content):
    example = as_example(query)
    assert example.content == content
    assert example.row == -1
    assert as_example({**query, "id": 7}).id == "7"


def test_a_row_by_the_names_of_the_training_data_is_a_query():
    form = QueryForm(Columns(text="body", completion="output", prompt="input"))
    assert as_example({"body": "a river"}, form).content == TextContent("a river")
    assert as_example({"input": "a", "output": " river"}, form).content == PromptContent("a", " river")


def test_of_a_run_of_chats_a_prompt_and_a_completion_are_turns_unless_asked_raw():
    query = {"prompt": "What is red?", "completion": "The river."}
    assert as_example(query, CHATS).content == MessagesContent((USER, SAYS))
    assert as_example({"completion": "The river."}, CHATS).content == MessagesContent((SAYS,))
    assert as_example(query, CHATS.asking(raw=True)).content == PromptContent("What is red?", "The river.")


@pytest.mark.parametrize("contrast", ["A stone.", {"role": "assistant", "content": "A stone."}])
@pytest.mark.parametrize(
    ("query", "form"),
    [
        ({"messages": [USER, SAYS], "tools": TOOLS}, QueryForm()),
        ({"prompt": "What is red?", "completion": "The river."}, CHATS),
    ],
)
def test_a_contrast_of_a_chat_is_another_last_turn_of_the_assistant(query, form, contrast):
    example = as_example({**query, "contrast": contrast}, form)
    assert example.contrast is not None
    assert example.contrast.content.messages == (USER, {"role": "assistant", "content": "A stone."})
    assert example.contrast.content.context == example.content.context
    assert example.id != as_example(query, form).id


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"messages": [SAYS, USER], "contrast": "A stone."}, "is by the user"),
        ({"messages": [USER, SAYS], "contrast": 3}, "The contrast is int 3"),
        ({"text": "a", "contrast": "b"}, "found the keys"),
        ({"messages": [USER, SAYS], "text": "a"}, "found the keys"),
        ({"messages": [USER, SAYS], "prompt": "a"}, "found the keys"),
        ({"completion": [SAYS]}, "completion is a list of messages and its prompt is not"),
        ({"message": [USER, SAYS]}, "no key 'message': is 'messages' meant"),
        ({"completion": "a", "contrasts": "b"}, "no key 'contrasts': is 'contrast' meant"),
        ({"text": "a", "lable": 1}, "no key 'lable': is 'label' meant"),
    ],
)
def test_what_is_no_query_says_why(query, said):
    with pytest.raises(QueryError, match=said):
        as_example(query)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"messages": "hello", "id": "mine"}, "Query 'mine': 'messages' is str"),
        ({"messages": [USER], "tools": 3}, "'tools' is int 3"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "half of a surrogate pair"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "has 1 entries for 2"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(query, said):
    with pytest.raises(DataError, match=said):
        as_example(query)


def test_columns_that_say_nothing_to_a_query_are_named_once(caplog):
    rows = [{"text": "a", "source": "web", "label": 1, "grade": 3}, {"text": "b", "source": "web"}]
    with caplog.at_level(logging.INFO, "influence"):
        asked = list(read_queries(rows, QueryForm(labels=False)))
    assert [example.label for example in asked] == [None, None]
    assert caplog.messages == ["Columns of the queries that are not read: 'source', 'label', 'grade'."]
    (classified,) = read_queries(rows[:1], QueryForm())
    assert classified.label == 1


def test_an_example_stays_what_it_is():
    example = Example.query("a", " river")
    assert as_example(example, CHATS) is example
