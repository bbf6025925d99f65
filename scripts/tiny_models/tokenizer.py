"""The tiny models' tokenizer: byte-level BPE over generated pages, 900 pieces.

A small vocabulary is what lets a two-million-parameter model learn to copy names: every name is
a few of the same syllables. Protocol tags are ordinary pieces, kept whole by the pre-tokenizer so
that each costs one token; only the three chat tokens are special.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 900
MAX_LENGTH = 2048
# Two rules make every name the same few tokens wherever it stands, which copying depends on:
# a space belongs to the word before it, and a capitalised word is cut after its third letter, where
# generated names have their syllable boundary.
_PATTERN = r"</?[a-z_]+>|\p{Lu}\p{Ll}{0,2} ?|\p{Ll}+ ?|\p{L}+ ?|\p{N} ?|[^\s\p{L}\p{N}] ?|\s+?"
_END, _OPEN, _CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts and wrap it with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_END, _OPEN, _CLOSE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_CLOSE,
        pad_token=_END,
        additional_special_tokens=[_OPEN],
        model_max_length=MAX_LENGTH,
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
