"""How many tokens a text takes, guessed from the text alone.

For servers whose tokenizer is not at hand. The guess is meant to be too high, since a context that
is cut a little early costs less than a prompt that a server refuses; it is no upper bound. Prefer
the tokenizer where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from searchrl.models.protocol import Message

_LETTERS_A_TOKEN = 4
_BYTES_A_TOKEN = 2
"""Of characters outside ASCII: one and a half tokens a Chinese character, one a Cyrillic letter."""
_TOKENS_A_MESSAGE = 8
"""What a chat template writes around a message, and again before the reply."""
_PIECES = re.compile(r"(?P<word>[A-Za-z]+)|(?P<ascii>[!-~\n])|(?P<other>[^\x00-\x7f]+)")


def estimate_tokens(text: str) -> int:
    """Tokens of a text: every digit, mark and line end one, words by their length."""
    total = 0
    for piece in _PIECES.finditer(text):
        match piece.lastgroup:
            case "word":
                total += -(-len(piece.group()) // _LETTERS_A_TOKEN)
            case "ascii":
                total += 1
            case _:
                size = len(piece.group().encode(errors="replace"))
                total += -(-size // _BYTES_A_TOKEN)
    return total


def estimate_chat(messages: Sequence[Message]) -> int:
    """Tokens of a chat in some template."""
    texts = sum(estimate_tokens(message.content) for message in messages)
    return texts + _TOKENS_A_MESSAGE * (len(messages) + 1)
