"""What a model is called where its weights have to be told apart from others of the same name.

A directory is named by the checksum of its weights, so it may be moved and not be altered, an
adapter by its own and its base's; a model of the hub, or behind a server, by its name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from searchrl.data.storage import sha256
from searchrl.errors import InputError
from searchrl.models.adapter_files import base_identity, base_of_adapter, is_adapter
from searchrl.models.options import HttpModelOptions, LocalModelOptions
from searchrl.models.tokenizers import model_path


def model_identity(options: LocalModelOptions | HttpModelOptions) -> str:
    """The identity of the model that a section names."""
    if isinstance(options, HttpModelOptions):
        return options.name
    return weights_identity(options.model)


def weights_identity(model: str) -> str:
    """``sha256:...`` over the safetensors files of a model's directory, or the name as it is."""
    path = Path(model_path(model))
    parts = [sha256(file) for file in sorted(path.glob("*.safetensors"))]
    if not parts:
        return model
    if is_adapter(str(path)):
        parts.append(base_identity(path) or weights_identity(base_of_adapter(path)))
    if len(parts) == 1:
        return f"sha256:{parts[0]}"
    return f"sha256:{hashlib.sha256(''.join(parts).encode()).hexdigest()}"


def check_base(folder: Path) -> str:
    """The base of an adapter, which has to hold the weights that the adapter was trained on.

    Raises:
        InputError: it does not, or it is not on this machine.
    """
    base, wanted = base_of_adapter(folder), base_identity(folder)
    if wanted is not None and weights_identity(base) != wanted:
        raise InputError(
            f"{folder}: was trained on other weights than {base} holds now; put those back, or use "
            "the merged model"
        )
    return base
