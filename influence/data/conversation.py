"""A chat as the text that the model's chat template makes of it, and where in that text the assistant speaks.

What is scored is said, in this order, by the template's `{% generation %}` markers, or by the difference between what
it renders up to a message and what it renders with it. Where a template renders a message otherwise once more follow
(it drops earlier thinking, say), a placeholder in the place of the message's content shows where its text stands.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from influence.data.example import Example, MessagesContent, place_of
from influence.data.rendering import bounded, check_length
from influence.errors import DataError

Span = tuple[int, int]
"""Characters from (inclusive) and to (exclusive)."""

MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
PLACEHOLDER = "\ue000\ue001\ue000"
"""Private-use characters: no text has them, and no template takes them for anything."""


def render_conversation(example: Example, tokeniser: Any) -> tuple[str, list[Span]]:
    """Render a chat, and find what of it is scored.

    Args:
        example: One whose content is messages.
        tokeniser: The model's, with a chat template.

    Returns:
        The text, and the characters from and to (exclusive) of each scored turn of the assistant: without the header in
        front of it, with its end-of-turn token. Where prompt and completion are lists of messages, of all that follows
        the prompt.

    Raises:
        DataError: There is no template, it refuses the messages, or the text of a turn can't be told apart.
    """
    assert isinstance(example.content, MessagesContent)
    if not tokeniser.chat_template:
        raise DataError(
            f"{place_of(example)} holds messages, but the tokeniser has no chat template to render them with. "
            "Use the tokeniser of a chat model (model.tokeniser), or give prompt and completion."
        )
    chat = _Chat(example, example.content, tokeniser)
    turns = [number for number, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if MARKER.search(chat.template):
        return chat.marked(turns)
    prompt = example.content.prompt
    if prompt is not None:
        return chat.whole, [(chat.start(prompt), len(chat.whole))]
    return chat.whole, [chat.span(number) for number in turns if chat.scored(number)]


class _Chat:
    """One chat and the template that renders it."""

    def __init__(self, example: Example, content: MessagesContent, tokeniser: Any) -> None:
        self._place, self._tokeniser, self._given = place_of(example), tokeniser, content
        # A weight says what is trained on and is no part of the text.
        self.messages: list[dict[str, Any]] = [
            {key: value for key, value in message.items() if key != "weight"} for message in content.messages
        ]
        context = dict(content.context)
        self._variables: Mapping[str, Any] = context.pop("chat_template_kwargs", None) or {}
        self._context: Mapping[str, Any] = context

    def scored(self, number: int) -> bool:
        """Whether a message of the assistant is trained on: by its weight, and by its place after the prompt."""
        return self._given.messages[number].get("weight", 1) != 0 and number >= (self._given.prompt or 0)

    @cached_property
    def whole(self) -> str:
        """The text of all messages."""
        return self._render(self.messages)

    @cached_property
    def template(self) -> str:
        """The template that the tokeniser takes for this chat: it may have one of its own for tools."""
        try:
            return self._tokeniser.get_chat_template(None, self._context.get("tools"))
        except ValueError as error:
            raise DataError(f"{self._place}: the tokeniser's chat template can't be chosen: {error}") from error

    def marked(self, turns: Sequence[int]) -> tuple[str, list[Span]]:
        """Return the text and the spans of the template's generation markers, those of unscored turns left out."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with bounded(self.template):
                texts, marked = render_jinja_template(
                    conversations=[[_without_null(message) for message in self.messages]],
                    chat_template=self.template,
                    return_assistant_tokens_mask=True,
                    **self._context,
                    **{**self._tokeniser.special_tokens_map, **self._variables},
                )
            check_length(texts[0])
        except Exception as error:
            raise self._refusal(len(self.messages), error) from error
        spans = [(int(start), int(stop)) for start, stop in marked[0]]
        if all(self.scored(number) for number in turns):
            return texts[0], spans
        if len(spans) != len(turns):
            raise DataError(
                f"{self._place}: the chat template marks {len(spans)} stretches of text as the assistant's, and the "
                f"assistant has {len(turns)} messages, so those that are not to be scored (weight 0, or in the prompt) "
                "can't be told apart. Score all of them, or give input_ids and labels."
            )
        return texts[0], [span for number, span in zip(turns, spans, strict=True) if self.scored(number)]

    def span(self, number: int) -> Span:
        """Return where an assistant's turn stands in the whole text."""
        start = self.start(number)
        if number + 1 == len(self.messages):
            return start, len(self.whole)
        after = self._render(self.messages[: number + 1])
        if self.whole.startswith(after) and len(after) >= start:
            return start, len(after)
        # The turn is rendered otherwise where it isn't the last. What ends it is what follows the last turn's content.
        head, tail = self._around(number, self.messages[number + 1 :])
        _, end = self._around(number, [])
        fits = self.whole.startswith(head) and self.whole.endswith(tail) and len(head) + len(tail) <= len(self.whole)
        if not fits or not tail.startswith(end) or start > len(head):
            raise self._indistinct(number)
        return start, len(self.whole) - len(tail) + len(end)

    def start(self, number: int) -> int:
        """Return where an assistant's turn begins in the whole text, its header left out."""
        prompting = self._render(self.messages[:number], prompting=True) if number else None
        if prompting is not None and self.whole.startswith(prompting):
            return len(prompting)
        # Nothing was asked before, or the generation prompt opens with what this turn lacks, such as `<think>`.
        for following in (self.messages[number + 1 :], []):
            head, _ = self._around(number, following)
            if not self.whole.startswith(head):
                continue
            if prompting is None:
                opening = self._opening()
                place = head.rfind(opening) if opening else -1
                return len(head) if place < 0 else place + len(opening)
            if prompting.startswith(head):
                return len(head)
        raise self._indistinct(number)

    def _opening(self) -> str:
        """Return the header that a generation prompt adds after the first message."""
        first = self.messages[:1]
        plain, prompting = self._render(first), self._render(first, prompting=True)
        return prompting[len(plain) :] if prompting.startswith(plain) else ""

    def _around(self, number: int, following: Sequence[dict[str, Any]]) -> tuple[str, str]:
        """Return the text before and after the content of a turn of the assistant, which a placeholder stands for."""
        stand_in = {"role": "assistant", "content": PLACEHOLDER}
        text = self._render([*self.messages[:number], stand_in, *following])
        head, placeholder, tail = text.partition(PLACEHOLDER)
        if not placeholder or PLACEHOLDER in tail:
            raise self._indistinct(number)
        return head, tail

    def _render(self, messages: Sequence[dict[str, Any]], *, prompting: bool = False) -> str:
        try:
            with bounded(self.template):
                text = self._tokeniser.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompting, **self._context, **self._variables
                )
            return check_length(text)
        except Exception as error:
            raise self._refusal(len(messages), error) from error

    def _refusal(self, count: int, error: Exception) -> DataError:
        return DataError(
            f"{self._place}: the tokeniser's chat template can't render messages 0 to {count - 1}: "
            f"{str(error) or type(error).__name__}"
        )

    def _indistinct(self, number: int) -> DataError:
        prompting = self._render(self.messages[:number], prompting=True) if number else ""
        pairs = zip(prompting, self.whole, strict=False)
        common = next((place for place, (first, other) in enumerate(pairs) if first != other), len(prompting))
        if number and common < len(self._render(self.messages[:number])):
            cause = "with more messages it renders the earlier ones differently"
        elif common < len(prompting):
            cause = (
                f"its generation prompt continues with {prompting[common:]!r:.60} where the rendered chat "
                "continues with "
                f"{self.whole[common : common + 40]!r}"
            )
        else:
            cause = "it renders that message otherwise when more messages follow"
        return DataError(
            f"{self._place}: the text of message {number} can't be told apart in what the tokeniser's chat template "
            f"renders: {cause}. Give a template with {{% generation %}} markers around what the assistant says "
            "(chat_template.jinja beside the tokeniser), or rows of prompt and completion, or of input_ids and labels."
        )


def _without_null(message: Mapping[str, Any]) -> dict[str, Any]:
    # As `apply_chat_template` does: templates print a null content as "None".
    return {key: value for key, value in message.items() if value is not None}
