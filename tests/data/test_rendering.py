"""A chat template that never ends, or makes gigabytes, is stopped by name; one that renders is left alone."""

import copy
from itertools import count

import pytest

from influence.data import rendering
from influence.data.conversation import render_conversation
from influence.data.example import Example, MessagesContent
from influence.data.rendering import RenderingError, bounded, check_length
from influence.errors import DataError

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDLESS += "{% endfor %}{% endfor %}{% endfor %}"


@pytest.fixture
def briefly(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.05)


@pytest.mark.parametrize("markers", ["", "{% generation %}x{% endgeneration %}"])
def test_a_template_that_never_ends_is_stopped_and_said_to_be_it(tokenizer, briefly, markers):
    with pytest.raises(DataError, match=r"(?s)chat template can't render.*took more than 0\.05 seconds"):
        render(tokenizer, ENDLESS + markers)
    assert render(tokenizer, "{{ messages[0]['content'] }}") == "hello", "the next rendering is not stopped"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 10 ** 10 ** 10 }}", r"its line 1 takes a power \(\*\*\)"),
        ("\n{{ 'x' * 100000000000 }}", "its line 2 has the number 100000000000, and 1,000,000 is the largest"),
        ("{% for i in range(1_000_000_000) %}{% endfor %}", "has the number 1_000_000_000"),
        ("{{ 'x'|center(0xffffffff) }}", "has the number 0xffffffff"),
        ("{{ '%01000000000d'|format(1) }}", "its line 1 fills a field with millions of characters"),
        ("{{ '{:>9999999999}'.format(1) }}", "its line 1 fills a field with millions of characters"),
    ],
)
def test_an_operation_that_makes_gigabytes_at_once_is_refused_before(tokenizer, template, reason):
    with pytest.raises(DataError, match=reason):
        render(tokenizer, template)


def test_a_chat_of_more_characters_than_any_model_reads_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(rendering, "MOST_CHARACTERS", 1000)
    assert len(check_length("x" * 1000)) == 1000
    with pytest.raises(DataError, match="it makes 1,001 characters of the messages, and 1,000 are the most"):
        render(tokenizer, "{% for i in range(1001) %}x{% endfor %}")


def test_a_rendering_that_just_fits_raises_nothing_afterwards(briefly):
    for _ in range(3):
        with pytest.raises(RenderingError), bounded("x"):
            sum(number for number in count() if number < 0)
    with bounded("x"):
        total = sum(range(1000))
    assert total == 499_500


def render(tokenizer, template: str) -> str:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    messages = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"})
    return render_conversation(Example(row=0, id="a", text="", content=MessagesContent(messages)), other)[0]
