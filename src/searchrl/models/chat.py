"""Chats as token ids in a model's own template, safe for content from outside.

A message's content never becomes a control token. Chats without control-token text are tokenised
exactly as the template's own rendering would be; in others, every content is tokenised apart, with
special tokens split into ordinary pieces.

Some templates open the model's message with a thinking block, empty or left open. The model writes
its own tags in this project's protocols, so a prompt that lets it think ends before that block, and
its tags are neither doubled nor half missing.
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
_THINKING_BLOCK = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], thinking: bool = True
) -> list[int]:
    """Token ids up to where the assistant speaks.

    Args:
        tokenizer: the model's, with its chat template.
        messages: the chat.
        thinking: whether a model with a think mode may use it; without, the template is asked to
            leave it out, and what it writes for that stays.

    Raises:
        InputError: a content holds control-token text, and the template does not write every
            content once.
    """
    controls = control_tokens(tokenizer)
    if any(token in message.content for message in messages for token in controls):
        return _render_apart(tokenizer, messages, thinking)
    return _encode(tokenizer, _template(tokenizer, messages, thinking), split=False)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The texts that the tokenizer reads as control tokens, and their ids.

    ``all_special_tokens`` holds only those with a role of their own; Llama 3 marks more as special.
    """
    added = tokenizer.added_tokens_decoder
    return {token.content: number for number, token in added.items() if token.special}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of plain text: control tokens in it become ordinary pieces."""
    return _encode(tokenizer, text, split=True)


def _render_apart(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], thinking: bool
) -> list[int]:
    marked = [Message(m.role, _MARK.format(number)) for number, m in enumerate(messages)]
    pieces = _MARKED.split(_template(tokenizer, marked, thinking))
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


def _template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], thinking: bool
) -> str:
    rows = [{"role": message.role, "content": message.content} for message in messages]

    def render(ask: bool) -> str:
        # Templates without a think mode do not read this variable.
        text = tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=ask, enable_thinking=thinking
        )
        return str(text)

    whole = render(ask=True)
    block = _THINKING_BLOCK.search(whole) if thinking else None
    if block is None:
        return whole
    # Only what opens the model's message is cut, never the end of somebody's content.
    said = render(ask=False)
    opened = whole.startswith(said) and block.start() >= len(said)
    return whole[: block.start()] if opened else whole


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, split: bool) -> list[int]:
    # Half a surrogate pair, which JSON can hold, has no bytes to tokenise.
    text = text.encode("utf-8", "replace").decode()
    # Texts are counted before they are cut, so a long one is no reason for the library to warn.
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False)
    ids = encoded["input_ids"]
    return [int(token) for token in ids]
