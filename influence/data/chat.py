"""The values of the columns that make a chat: its messages, and what else its template is given.

A column of structs, as Parquet and Arrow have it, gives every object all the keys that any object has, null where it
has none. A template must not see those: keys whose value is null are left out, however deep, so that the same chat
gives the same tokens from any format; `content` alone stays, as null. Items of lists stay as they are.
"""

import json
from collections.abc import Mapping
from typing import Any

from influence.data.columns import typed
from influence.errors import DataError

OTHER_WEIGHTS = ("train", "training", "trainable", "mask", "masked", "loss", "loss_weight")
"""Keys of a message that say to other trainers whether it is trained on."""
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
    "tool": "tool",
}
"""ShareGPT's names for who speaks, and the roles they are."""

RESERVED = {
    *("messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("conversation", "conversations", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
    *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
}
"""What a template is given by name already; a row's variables can't replace it."""


def messages_of(value: Any, column: str, where: str) -> list[dict[str, Any]]:
    """Return a chat's messages, each an object with `role` and, unless it calls tools or thinks, `content`.

    Args:
        value: The column's value; messages of ShareGPT, `from` and `value`, are renamed.
        column: Its name, for messages.
        where: The row, for messages.

    Raises:
        DataError: It is no list of messages, or a weight can't be honoured.
    """
    if not isinstance(value, list) or not value:
        text = isinstance(value, str) and value.lstrip().startswith(("[", "{"))
        remedy = " It looks like JSON in a text: write the list itself." if text else ""
        raise DataError(f"{where}: {column!r} is {typed(value)}, expected a list of messages, one at least.{remedy}")
    return [_turn(message, f"{where}: message {number} of {column!r}") for number, message in enumerate(value)]


def _turn(message: Any, where: str) -> dict[str, Any]:
    turn = without_nulls(message)
    if isinstance(turn, dict) and isinstance(turn.get("from"), str) and "value" in turn and "role" not in turn:
        turn = _renamed(turn, where)
    says = isinstance(turn, dict) and ("content" in message or set(turn) - {"role", "weight", "name"})
    if not says or not isinstance(turn.get("role"), str):
        raise DataError(f"{where} is {typed(message)}, expected an object with 'role' and 'content'.")
    turn.setdefault("content", None)
    other = next((name for name in OTHER_WEIGHTS if isinstance(turn.get(name), bool | int | float)), None)
    if other is not None:
        raise DataError(
            f"{where} has {other!r}, by which some trainers tell what is trained on, and which is not read here. Write "
            "'weight': 1 where the message is trained on and 0 where it isn't; or leave the key out."
        )
    weight = turn.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise DataError(
            f"{where} has the weight {weight!r}. Expected 1 where the message is trained on and 0 where it isn't: "
            "other weights would scale its loss, which is not supported. Leave it out, or drop the row."
        )
    if weight is not None and weight and turn["role"] != "assistant":
        raise DataError(
            f"{where} has weight 1 and is by the {turn['role']}, and only the assistant's messages are scored. Leave "
            "the weight out; or give input_ids and labels."
        )
    return turn


def _renamed(turn: dict[str, Any], where: str) -> dict[str, Any]:
    role = SPEAKERS.get(turn["from"])
    if role is None:
        raise DataError(
            f"{where} is from {turn['from']!r}, expected one of {', '.join(SPEAKERS)}. Write role and content instead, "
            "as the model's chat template names them."
        )
    return {"role": role, "content": turn["value"]} | {
        key: value for key, value in turn.items() if key not in ("from", "value")
    }


def context_of(role: str, value: Any, column: str, where: str) -> Any:
    """Return what a template is given beside the messages; None where a row has none.

    Args:
        role: `tools` or `documents`, lists of objects; or `chat_template_kwargs`, an object.
        value: The column's value, or the same as JSON text.
        column: Its name, for messages.
        where: The row, for messages.

    Raises:
        DataError: It is something else, or a variable has a reserved name.
    """
    value = _parsed(value, column, where)
    if value is None or value == "":
        return None
    if role == "chat_template_kwargs":
        if not isinstance(value, dict):
            raise DataError(f"{where}: {column!r} is {typed(value)}, expected an object of the template's variables.")
        reserved = sorted(RESERVED & set(value))
        if reserved:
            raise DataError(f"{where}: {column!r} sets {reserved[0]!r}, which isn't a row's to set. Leave it out.")
        return value or None
    if isinstance(value, list):
        value = [_parsed(item, column, where) for item in value]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where}: {column!r} is {typed(value)}, expected a list of objects.")
    return value or None


def _parsed(value: Any, column: str, where: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return None if isinstance(value, str) else without_nulls(value)
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{where}: {column!r} is text that is no JSON: {error}, in {value!r:.80}.") from None


def without_nulls(value: Any) -> Any:
    """Return a value without the keys, at any depth, whose value is null."""
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


__all__ = ["context_of", "messages_of", "without_nulls"]
