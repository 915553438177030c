"""A chat's text is the one that was trained on, and what is scored of it is what a trainer scores."""

import copy
import json
import logging

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import processors

from influence.data import special_tokens
from influence.data.dataset import DataSettings, open_rows
from influence.data.example import Example, PromptContent, TextContent, content_id
from influence.data.tokenise import NOT_SCORED, tokenise
from influence.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% for d in documents or [] %}{{ d['text'] }}\n{% endfor %}"
)
# As Qwen3's and DeepSeek-R1's do: thinking of earlier turns is dropped, the last turn has an empty thought.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n{{ m['reasoning_content'] or '' }}\n</think>\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SPOKEN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} "
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
USER = {"role": "user", "content": "What is red?"}
SAYS = {"role": "assistant", "content": "The river."}
AGAIN = {"role": "assistant", "content": "And the harbour."}


@pytest.fixture
def chatting(tokenizer):
    """`chatting(template)`: the tokeniser with that template."""

    def build(template: str):
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        return own

    return build


@pytest.fixture
def parts_of(jsonl):
    """`parts_of(tokeniser, record, …)`: the tokenised rows of a jsonl file of these records."""

    def read(tokeniser, *records, **settings):
        data = DataSettings(path=str(jsonl(records)), **settings)
        return tokenise(list(open_rows(data).examples()), tokeniser, data)

    return read


def scored(part, tokeniser) -> str:
    return tokeniser.decode(part.input_ids[part.labels != NOT_SCORED])


def test_an_assistant_who_speaks_first_is_scored_without_the_default_system_prompt_and_the_header(chatting, parts_of):
    own = chatting(SYSTEM + CHATML)
    (part,) = parts_of(own, {"messages": [SAYS, USER, AGAIN]})
    assert own.decode(part.input_ids) == own.apply_chat_template([SAYS, USER, AGAIN], tokenize=False)
    assert scored(part, own) == "The river.<|im_end|>\nAnd the harbour.<|im_end|>\n"


@pytest.mark.parametrize("as_text", [False, True], ids=["objects", "json-text"])
def test_tools_documents_and_variables_of_a_row_reach_the_template(chatting, parts_of, as_text):
    own = chatting(TOOLS + "{{ mood }}" + CHATML)
    beside = {
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
        "documents": [{"title": "a", "text": "Rivers are red."}],
        "chat_template_kwargs": {"mood": "calm"},
    }
    written = {name: json.dumps(value) for name, value in beside.items()} if as_text else beside
    (part,) = parts_of(own, {"messages": [USER, SAYS], **written})
    expected = own.apply_chat_template(
        [USER, SAYS], tools=beside["tools"], documents=beside["documents"], mood="calm", tokenize=False
    )
    assert all(word in expected for word in ("look", "Rivers are red.", "calm"))
    assert own.decode(part.input_ids) == expected
    assert scored(part, own) == "The river.<|im_end|>\n"


def test_tools_that_only_a_later_row_has_reach_its_template_also_when_the_run_is_opened_again(chatting, jsonl):
    own = chatting(TOOLS + CHATML)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    path = jsonl([{"messages": [USER, SAYS]}, {"messages": [USER, SAYS], "tools": tools}])
    first = open_rows(DataSettings(path=str(path)))
    for rows in (first, open_rows(DataSettings(path=str(path), columns=first.columns))):
        plain, tooled = tokenise(list(rows.examples()), own, DataSettings(path="unread"))
        assert own.decode(tooled.input_ids) == own.apply_chat_template([USER, SAYS], tools=tools, tokenize=False)
        assert len(plain.input_ids) < len(tooled.input_ids)


def test_a_row_cannot_bring_its_own_template(parts_of, chatting):
    row = {"messages": [USER, SAYS], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
    with pytest.raises(DataError, match=r"line 1: 'chat_template_kwargs' sets 'chat_template'"):
        parts_of(chatting(CHATML), row)


def test_the_same_chat_gives_the_same_tokens_from_jsonl_and_from_parquet(chatting, jsonl, tmp_path):
    own = chatting("{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}")
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"at": "x"}}}]}
    other = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "g", "arguments": {"on": 1}}}]}
    tools = [
        {"name": "f", "parameters": {"at": {"type": "string"}}},
        {"name": "g", "parameters": {"on": {"unit": "m"}}},
    ]
    records = [{"messages": [USER, call, other, SAYS], "tools": tools}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    texts = []
    for path in (jsonl(records), tmp_path / "rows.parquet", tmp_path / "saved"):
        (example,) = open_rows(DataSettings(path=str(path))).examples()
        texts.append(
            (
                example.id,
                own.apply_chat_template(list(example.content.messages), tokenize=False, **example.content.context),
            )
        )
    assert texts[0] == texts[1] == texts[2]
    assert "null" not in texts[0][1]


@pytest.mark.parametrize("weights", [(0, 1), (1, 0), (None, 0), (1, 1)])
@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by-prefixes", "by-markers"])
def test_a_turn_of_weight_0_is_context_and_not_scored(chatting, parts_of, template, weights):
    own = chatting(template)
    said = [turn if w is None else {**turn, "weight": w} for turn, w in zip((SAYS, AGAIN), weights, strict=True)]
    (part,) = parts_of(own, {"messages": [USER, said[0], USER, said[1]]})
    assert own.decode(part.input_ids) == own.apply_chat_template([USER, SAYS, USER, AGAIN], tokenize=False)
    end = "<|im_end|>\n" if template == CHATML else "<|im_end|>"
    assert scored(part, own) == "".join(
        turn["content"] + end for turn, weight in zip((SAYS, AGAIN), weights, strict=True) if weight != 0
    )


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({**SAYS, "weight": 0.5}, "has the weight 0.5"),
        ({**USER, "weight": 1}, "is by the user"),
        ({**SAYS, "train": False}, "has 'train', by which some trainers tell what is trained on"),
        ({**SAYS, "masked": 1}, "has 'masked'"),
    ],
)
def test_a_weight_that_cannot_be_honoured_is_refused_by_row_and_message(chatting, parts_of, turn, said):
    with pytest.raises(DataError, match=f"line 1: message 1 of 'messages' .*{said}"):
        parts_of(chatting(CHATML), {"messages": [USER, turn]})


def test_generation_markers_say_what_is_scored_whatever_the_generation_prompt_opens_with(chatting, parts_of):
    own = chatting(MARKED)
    (part,) = parts_of(own, {"messages": [USER, SAYS]})
    wanted = own.apply_chat_template([USER, SAYS], return_assistant_tokens_mask=True, return_dict=True)
    assert part.input_ids.tolist() == wanted["input_ids"]
    assert (part.labels != NOT_SCORED).tolist() == [bool(bit) for bit in wanted["assistant_masks"]]


def test_a_generation_prompt_that_opens_a_thought_the_turn_lacks_leaves_the_turn_scored_whole(chatting, parts_of):
    own = chatting(OPENED)
    (part,) = parts_of(own, {"messages": [USER, {**SAYS, "content": "<b>The river.</b>"}, USER, AGAIN]})
    assert scored(part, own) == "<b>The river.</b><|im_end|>\nAnd the harbour.<|im_end|>\n"


def test_turns_are_told_apart_where_a_template_drops_earlier_thinking(chatting, parts_of):
    own = chatting(THINKING)
    said = [USER, {**SAYS, "reasoning_content": "Hm."}, USER, {**AGAIN, "reasoning_content": "So."}]
    (part,) = parts_of(own, {"messages": said})
    assert own.decode(part.input_ids) == own.apply_chat_template(said, tokenize=False)
    assert scored(part, own) == "The river.<|im_end|>\n<think>\nSo.\n</think>\nAnd the harbour.<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        (f"{SPOKEN}{{% if loop.last and m.role == 'assistant' %}}!{{% endif %}}{{% endfor %}}", "otherwise when more"),
        (f"{SPOKEN}{{% endfor %}}{{% if add_generation_prompt %}}Now: {{% endif %}}", "continues with 'Now: '"),
    ],
)
def test_a_turn_that_cannot_be_told_apart_is_refused_with_the_true_cause_and_the_remedy(
    chatting, parts_of, template, cause
):
    own = chatting(template)
    with pytest.raises(DataError, match="the text of message 1 can't be told apart") as caught:
        parts_of(own, {"messages": [USER, SAYS, USER, AGAIN]})
    assert cause in str(caught.value)
    assert "{% generation %}" in str(caught.value)


@pytest.mark.parametrize("template", [CHATML, OPENED], ids=["plain", "thinking"])
def test_a_prompt_and_a_completion_of_messages_score_all_that_follows_the_prompt(chatting, parts_of, template):
    own = chatting(template)
    prompt, completion = [USER, SAYS, USER], [AGAIN, USER, SAYS]
    strings = {"prompt": "a", "completion": " list"}
    part, plain = parts_of(own, {"prompt": prompt, "completion": completion}, strings)
    assert own.decode(part.input_ids) == own.apply_chat_template([*prompt, *completion], tokenize=False)
    assert scored(part, own) == own.apply_chat_template([*prompt, *completion], tokenize=False).partition(
        "<|im_start|>assistant\nAnd"
    )[2].join(["And", ""])
    assert scored(plain, own) == " list"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": [USER], "completion": "red"}, "Expected two strings, or two lists of messages"),
        ({"prompt": [USER, SAYS], "completion": [AGAIN]}, "is by the assistant"),
        ({"prompt": [USER], "completion": [USER, SAYS]}, "by the user"),
        ({"prompt": [USER], "completion": [{**SAYS, "weight": 0}]}, "has weight 0"),
        ({"messages": [USER, SAYS], "tools": "no json"}, "is text that is no JSON"),
        ({"messages": [USER, SAYS], "tools": {"name": "f"}}, "expected a list of objects"),
        ({"messages": [{"from": "narrator", "value": "a"}]}, "is from 'narrator'"),
    ],
)
def test_what_is_no_chat_is_refused_by_line(chatting, parts_of, record, said):
    with pytest.raises(DataError, match="line 1") as caught:
        parts_of(chatting(CHATML), record)
    assert said in str(caught.value)


def test_sharegpt_is_named_where_it_is_found_and_read_where_it_is_named(chatting, parts_of):
    own = chatting(CHATML)
    row = {"conversations": [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "The river."}]}
    with pytest.raises(DataError, match=r"data\.columns\.messages: conversations"):
        parts_of(own, row)
    (part,) = parts_of(own, row, columns={"messages": "conversations"})
    assert own.decode(part.input_ids) == own.apply_chat_template([USER, SAYS], tokenize=False)


def test_a_chat_with_tools_has_another_id_than_the_one_without(jsonl):
    path = jsonl([{"messages": [USER, SAYS]}, {"messages": [USER, SAYS], "tools": [{"name": "f"}]}])
    plain, tooled = open_rows(DataSettings(path=str(path))).examples()
    assert plain.id != tooled.id == content_id(tooled.content)


@pytest.fixture
def beginning(tokenizer):
    """A tokeniser with a first token, which it puts in front of every text."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<|start|>"})
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", own.bos_token_id)]
    )
    special_tokens.warn_doubled.cache_clear()
    return own


def test_the_first_token_is_counted_once_where_a_text_has_it_already_and_that_is_said_once(beginning, caplog):
    data = DataSettings(path="unread")
    texts = [Example(n, str(n), text, TextContent(text)) for n, text in enumerate(["<|start|>a river", "a river"])]
    asked = [Example.query("<|start|>a", " river"), Example.query("a", " river")]
    with caplog.at_level(logging.WARNING, "influence"):
        written, plain, prompted, bare = tokenise([*texts, *asked], beginning, data)
        tokenise(texts, beginning, data)
    for one, other in ((written, plain), (prompted, bare)):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    classified = [
        Example(0, "a", text, TextContent(text), label=0) for text in ("<|start|>a river runs", "a river runs")
    ]
    cut = DataSettings(path="unread", max_tokens=3)
    one, other = tokenise(classified, beginning, cut, "sequence_classification")
    np.testing.assert_array_equal(one.input_ids, other.input_ids)


@pytest.fixture
def ending(tokenizer):
    """A tokeniser that puts its end token behind every text."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", own.eos_token_id)]
    )
    special_tokens.warn_doubled.cache_clear()
    return own


def test_the_end_token_is_counted_once_where_a_text_has_it_already(ending, caplog):
    data = DataSettings(path="unread")
    texts = [Example(n, str(n), text, TextContent(text)) for n, text in enumerate(["a river<|end|>", "a river"])]
    asked = [Example.query("a", " river<|end|>"), Example.query("a", " river")]
    with caplog.at_level(logging.WARNING, "influence"):
        written, plain, prompted, bare = tokenise([*texts, *asked], ending, data)
    for one, other in ((written, plain), (prompted, bare)):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.input_ids[-2:].tolist().count(ending.eos_token_id) == 1
    assert "Texts end with <|end|>" in caplog.text


def test_two_end_tokens_that_a_text_has_itself_stay(tokenizer):
    text = "a<|end|><|end|>"
    (part,) = tokenise([Example(0, "a", text, TextContent(text))], tokenizer, DataSettings(path="unread"))
    assert part.input_ids[-2:].tolist() == [tokenizer.eos_token_id] * 2


def test_two_first_tokens_that_a_text_has_itself_stay(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<|start|>"})
    text = "<|start|><|start|>a"
    (part,) = tokenise([Example(0, "a", text, TextContent(text))], own, DataSettings(path="unread"))
    assert part.input_ids[:2].tolist() == [own.bos_token_id] * 2


def test_truncation_says_how_many_scored_tokens_it_took(tokenizer):
    content = PromptContent("the list keeps " * 9, "its items")
    (part,) = tokenise([Example(0, "a", "", content)], tokenizer, DataSettings(path="unread", max_tokens=12))
    (whole,) = tokenise([Example(0, "a", "", content)], tokenizer, DataSettings(path="unread"))
    assert (part.scored, part.lost, part.length) == (0, whole.scored, len(whole.input_ids))
