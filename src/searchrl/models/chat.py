"""Chats as token ids in a model's own template, safe for content from outside.

A message's content never becomes a control token. Chats without control-token text are tokenised
exactly as the template's own rendering would be; in others, every content is tokenised apart, with
special tokens split into ordinary pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from searchrl.errors import InputError
from searchrl.models.protocol import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters, which no template writes itself.
_MARK = "\ue000{}\ue001"
_MARKED = re.compile("\ue000(\\d+)\ue001")


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids up to where the assistant speaks.

    Raises:
        InputError: a content holds control-token text, and the template does not write every
            content once.
    """
    controls = control_tokens(tokenizer)
    if any(token in message.content for message in messages for token in controls):
        return _render_apart(tokenizer, messages)
    return _encode(tokenizer, _template(tokenizer, messages), split=False)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The texts that the tokenizer reads as control tokens, and their ids.

    ``all_special_tokens`` holds only those with a role of their own; Llama 3 marks more as special.
    """
    added = tokenizer.added_tokens_decoder
    return {token.content: number for number, token in added.items() if token.special}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of plain text: control tokens in it become ordinary pieces."""
    return _encode(tokenizer, text, split=True)


def _render_apart(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    marked = [Message(m.role, _MARK.format(number)) for number, m in enumerate(messages)]
    pieces = _MARKED.split(_template(tokenizer, marked))
    if sorted(map(int, pieces[1::2])) != list(range(len(messages))):
        raise InputError(
            "the model's chat template leaves out or repeats a message, so a message with "
            "control-token text cannot be rendered safely; use a model with another template"
        )
    token_ids = _encode(tokenizer, pieces[0], split=False)
    for number, after in zip(pieces[1::2], pieces[2::2], strict=True):
        token_ids += _encode(tokenizer, messages[int(number)].content, split=True)
        token_ids += _encode(tokenizer, after, split=False)
    return token_ids


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    rows = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    return str(text)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, split: bool) -> list[int]:
    # Half a surrogate pair, which JSON can hold, has no bytes to tokenise.
    text = text.encode("utf-8", "replace").decode()
    # Texts are counted before they are cut, so a long one is no reason for the library to warn.
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False)
    ids = encoded["input_ids"]
    return [int(token) for token in ids]
