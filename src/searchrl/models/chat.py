"""Chats as token ids in a model's own template, safe for content from outside.

A message's content never becomes a control token. Content without control-token text is tokenised
exactly as the template's own rendering would be; content with such text is tokenised apart, with
special tokens split into ordinary pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from searchrl.models.protocol import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters: no template writes them, and content that holds one takes the slow path.
_OPEN, _CLOSE = "\ue000", "\ue001"


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids up to where the assistant speaks."""
    controls = [token for token in tokenizer.all_special_tokens if token]
    suspicious = [
        message
        for message in messages
        if any(token in message.content for token in (*controls, _OPEN, _CLOSE))
    ]
    if not suspicious:
        return _encode(tokenizer, _template(tokenizer, messages), split=False)
    return _render_apart(tokenizer, messages)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of plain text: control tokens in it become ordinary pieces."""
    return _encode(tokenizer, text, split=True)


def _render_apart(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[int]:
    marked = [
        Message(message.role, f"{_OPEN}{number}{_CLOSE}") for number, message in enumerate(messages)
    ]
    rest = _template(tokenizer, marked)
    token_ids: list[int] = []
    for number, message in enumerate(messages):
        before, _, rest = rest.partition(f"{_OPEN}{number}{_CLOSE}")
        token_ids += _encode(tokenizer, before, split=False)
        token_ids += _encode(tokenizer, message.content, split=True)
    return token_ids + _encode(tokenizer, rest, split=False)


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    rows = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    return str(text)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, split: bool) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"]
    return [int(token) for token in ids]
