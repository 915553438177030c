"""A conversation as the text that the model's chat template makes of it, and where the assistant speaks."""

from typing import Any

from influence.data.example import Example, MessagesContent, place_of
from influence.errors import DataError

Span = tuple[int, int]
"""Characters from (inclusive) and to (exclusive)."""


def render_conversation(example: Example, tokeniser: Any) -> tuple[str, list[Span]]:
    """Render a conversation, and find each assistant's turn as what rendering one more message adds.

    Args:
        example: One whose content is messages.
        tokeniser: The model's, with a chat template.

    Returns:
        The text, and the characters from and to (exclusive) of each assistant's turn, its end-of-turn token included.

    Raises:
        DataError: There is no template, it refuses the messages, or it renders earlier messages anew when more follow.
    """
    assert isinstance(example.content, MessagesContent)
    messages = [dict(message) for message in example.content.messages]
    if not tokeniser.chat_template:
        raise DataError(
            f"{place_of(example)} holds messages, but the tokeniser has no chat template to render them with. "
            "Use the tokeniser of a chat model (model.tokeniser), or give prompt and completion."
        )

    def render(count: int, *, prompting: bool = False) -> str:
        try:
            return tokeniser.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompting)
        except Exception as error:
            raise DataError(
                f"{place_of(example)}: the tokeniser's chat template can't render messages 0 to {count - 1}: {error}"
            ) from error

    whole = render(len(messages))
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(number, prompting=True) if number else ""
        after = render(number + 1)
        if not after.startswith(before) or not whole.startswith(after):
            raise DataError(
                f"{place_of(example)}: with more messages the tokeniser's chat template renders the earlier ones anew, "
                f"so the text of message {number} can't be told apart. "
                "Give prompt and completion, or input_ids and labels."
            )
        spans.append((len(before), len(after)))
    return whole, spans
