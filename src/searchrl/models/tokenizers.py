"""Model names, and the tokenizers behind them; neither needs the model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = Path(__file__).parent / "tiny"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer by path, hub name, or ``tiny-searcher`` / ``tiny-generator``.

    Raises:
        InputError: there is none, it cannot be loaded, or it has no chat template.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    path = model_path(name)
    try:
        # Named, because transformers otherwise asks on the terminal whether to run code.
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        # The libraries below raise errors of many kinds for files that are not theirs.
        reason = " ".join(str(error).split())
        raise InputError(f"model {name!r}: cannot be loaded: {reason[:300]}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if not tokenizer.chat_template:
        raise InputError(f"model {name!r}: its tokenizer has no chat template")
    return tokenizer


def model_path(name: str) -> str:
    """Where a model name leads: a shipped model, a directory, or a hub name as it is."""
    if name.startswith("tiny-"):
        shipped = TINY / name.removeprefix("tiny-")
        if not shipped.is_dir():
            raise InputError(
                f"model {name!r}: the shipped models are tiny-searcher, tiny-generator"
            )
        return str(shipped)
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise InputError(f"model {name!r}: no such directory")
    return name
