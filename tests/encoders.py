"""Text encoders of random weights, written where a test wants them."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DPRConfig,
    DPRContextEncoder,
    PreTrainedTokenizerFast,
)

from searchrl.data.passages import Passage

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
DIMENSION = 16
PLACES = tuple("Arbon Basel Chur Davos Epalinges Flims Glarus Horgen Ilanz Jona Kloten".split())  # noqa: SIM905
CORPUS = [
    Passage(f"p{number}", place, f"{place} was founded in {1800 + 7 * number}, they say.")
    for number, place in enumerate(PLACES)
]


def write_encoder(path: Path, seed: int = 0, labels: int = 0) -> Path:
    """A one-layer BERT; with ``labels`` outputs on top, if any."""
    torch.manual_seed(seed)
    kind = BertForSequenceClassification if labels else BertModel
    network = kind(BertConfig(**_shape(), num_labels=labels or 2))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12.0)  # wider than the default start, so that texts differ
    network.save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return path


def write_dpr(path: Path, seed: int = 0) -> Path:
    """DPR's encoder of passages."""
    torch.manual_seed(seed)
    DPRContextEncoder(DPRConfig(**_shape())).save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return path


def _shape() -> dict[str, int]:
    return {
        "vocab_size": len(_vocabulary()),
        "hidden_size": DIMENSION,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }


def _vocabulary() -> dict[str, int]:
    letters = string.ascii_lowercase + string.digits
    words = [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *string.punctuation]
    return {word: number for number, word in enumerate(words)}


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = _vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
