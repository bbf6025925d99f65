"""Checkpoints of random weights: Qwen3's architecture in sizes, and a tokenizer of bare numbers.

What training costs does not depend on what the weights are. The tokenizer writes token 17 as
``w17``, so that text and tokens are the same thing; its end token is one that the model has no
weights for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.training.work import PADDING, VOCABULARY, Tokens
from searchrl.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_Shape = tuple[int, int, int, int, int, int]
_SHAPES: dict[str, _Shape] = {
    # width, MLP, layers, query heads, key heads, head
    "nano": (32, 64, 2, 4, 2, 8),
    "1m": (128, 384, 4, 4, 2, 32),
    "3m": (192, 512, 6, 6, 2, 32),
    "10m": (320, 896, 8, 5, 5, 64),
    "30m": (512, 1408, 10, 8, 4, 64),
    "100m": (768, 2304, 14, 12, 4, 64),
    "qwen3-0.6b-config": (1024, 3072, 28, 16, 8, 128),
}
SIZES = tuple(_SHAPES)
_REAL_VOCABULARY = 151_936
"""Of the real Qwen3, whose head is a quarter of the 0.6B model."""
_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_model(size: str, seed: int, dtype: str, folder: Path) -> int:
    """Write a checkpoint; returns how many weights it has.

    Raises:
        InputError: there is no such size.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if size not in _SHAPES:
        raise InputError(f"--model {size!r}: choose one of {', '.join(SIZES)}")
    width, mlp, layers, heads, kv_heads, head = _SHAPES[size]
    vocabulary = _REAL_VOCABULARY if size.startswith("qwen3") else VOCABULARY
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=PADDING,
    )
    model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    _tokenizer(vocabulary).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def text_of(tokens: Tokens) -> str:
    """Text that is tokenised to just these tokens."""
    return " ".join(f"w{token}" for token in tokens)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    words = {f"w{token}": token for token in range(vocabulary)}
    # verl asks any tokenizer of a Qwen for the end of a line.
    words |= {"<end>": vocabulary, "\n": vocabulary + 1}
    made = Tokenizer(WordLevel(words, unk_token=f"w{PADDING}"))
    made.pre_tokenizer = Split(" ", "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<end>",
        pad_token=f"w{PADDING}",
        unk_token=f"w{PADDING}",
        chat_template=_CHAT,
    )
