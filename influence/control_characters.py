"""Characters that a reader can't see: controls, and the marks that turn the direction of a text around.

On a page they would vanish, or show a text in another order than it stands. So they are shown as symbols.
"""

import re

# Controls but tab and newline, marks of direction, separators of lines, halves of pairs, what XML can't hold.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_PICTURES, _DELETE = 0x2400, 0x7F


def show_controls(text: str) -> str:
    """Return a text with a symbol in the place of each character that can't be seen: ␀ to ␟, ␡, else ⟨U+202E⟩."""
    return _UNSEEN.sub(_symbol, text)


def shown(value: object) -> object:
    """Return what a template writes for a value: a text with its controls shown, anything else as it is."""
    # Markup is a template's own, whose texts were shown when they were put into it.
    return show_controls(value) if type(value) is str else value


def _symbol(found: re.Match[str]) -> str:
    number = ord(found.group())
    if number < ord(" "):
        return chr(_PICTURES + number)
    return "\u2421" if number == _DELETE else f"⟨U+{number:04X}⟩"
