"""Loading of the networks that read text, from a directory or the hub.

Weights come from safetensors only and no code of a model repository is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchrl.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}
"""Models whose positions start after that of their padding token."""


def load_network(
    what: str, name: str, classifier: bool, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a text encoder, or a classifier of sequences, with its tokenizer.

    Args:
        what: opens error messages, as in ``encoder``.
        name: a path or a hub name.
        classifier: whether the network ends in a classifier.
        dtype: number form of the weights.
        device: where they go.

    Raises:
        InputError: there is no such model, it cannot be loaded, or its files lack weights.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise InputError(f"{what} {name!r}: no such directory")
    try:
        network, missing = _load(name, classifier, dtype)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        network = network.to(device).eval()
    except Exception as error:
        # The libraries below raise errors of many kinds for files that are not theirs.
        reason = " ".join(str(error).split())
        raise InputError(f"{what} {name!r}: cannot be loaded: {reason[:300]}") from error
    if missing:
        raise InputError(f"{what} {name!r}: its weights lack {missing[0]!r}; is it the right kind?")
    return network, tokenizer


def longest_input(network: PreTrainedModel, wanted: int) -> int:
    """``wanted`` tokens, or as many as the network has positions for."""
    positions = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return wanted
    return min(wanted, positions - first_position(network))


def first_position(network: PreTrainedModel) -> int:
    """The number of a text's first position."""
    return 2 if getattr(network.config, "model_type", "") in _OFFSET_POSITIONS else 0


def _load(name: str, classifier: bool, dtype: str) -> tuple[Any, list[str]]:
    """The network, and the names of weights that no file holds and that are used."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        DPRContextEncoder,
    )

    kind: Any = AutoModelForSequenceClassification if classifier else AutoModel
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    # Both sides of DPR share one configuration class, which stands for the question encoder.
    if "DPRContextEncoder" in (config.architectures or ()):
        kind = DPRContextEncoder
    network, report = kind.from_pretrained(
        name,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # The pooler of a plain encoder is not used, and checkpoints of sentence encoders lack it.
    unused = "" if classifier else "pooler."
    return network, sorted(k for k in report["missing_keys"] if not (unused and unused in k))
