"""The texts in which phrases are looked for: of rows with an input and an answer, prompts apart from completions."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from influence.data.example import Example, MessagesContent, PromptContent
from influence.issues.checks.phrases import BREAK, Texts
from influence.text_dedup.inputs import is_split

if TYPE_CHECKING:
    from influence.issues.subject import Subject

WHOLE, PROMPT, COMPLETION = "", "prompt", "completion"
BLOCK = 4096


def sides_of(example: Example) -> tuple[str, str]:
    """Return what an example gives the model to read and what the model says, as plain text without roles.

    Of a conversation: every message that isn't the assistant's, and all of the assistant's, with breaks between them.
    Of a text or tokens: nothing, and the text.
    """
    match example.content:
        case PromptContent(prompt, completion):
            return prompt, completion
        case MessagesContent(messages):
            spoken = [(message["role"] == "assistant", _spoken(message.get("content"))) for message in messages]
            asked = BREAK.join(text for own, text in spoken if not own)
            return asked, BREAK.join(text for own, text in spoken if own)
        case _:
            return "", example.text


def texts_of_rows(subject: "Subject") -> dict[str, Texts]:
    """Return the texts of a run's rows by side: prompts and completions where rows have them, else whole texts."""
    if not is_split(subject.run):
        store = subject.run.store

        def stored(rows: np.ndarray) -> Iterator[str]:
            for start in range(0, len(rows), BLOCK):
                yield from (line["text"] for line in store.meta(rows[start : start + BLOCK], ("text",)))

        return {WHOLE: Texts(subject.rows, stored, store.texts)}
    return {side: _side(subject, number) for number, side in enumerate((PROMPT, COMPLETION))}


def texts_of_examples(examples: Iterable[Example], sides: Iterable[str]) -> dict[str, list[str]]:
    """Return the texts of some examples by side."""
    given = list(examples)
    return {
        side: [example.text if side == WHOLE else sides_of(example)[side == COMPLETION] for example in given]
        for side in sides
    }


def _side(subject: "Subject", number: int) -> Texts:
    def some(rows: np.ndarray) -> Iterator[str]:
        return (sides_of(subject.data.example(int(row)))[number] for row in rows)

    def every() -> Iterator[str]:
        return (sides_of(example)[number] for example in subject.data.examples())

    return Texts(subject.rows, some, every)


def _spoken(content: Any) -> str:
    """Return the words of a message: its text, or those of its parts that have one."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


__all__ = ["COMPLETION", "PROMPT", "WHOLE", "sides_of", "texts_of_examples", "texts_of_rows"]
