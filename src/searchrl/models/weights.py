"""What a model is called where its weights have to be told apart from others of the same name.

A directory is named by the checksum of its weights, so it may be moved and not be altered; a model
of the hub, or behind a server, by its name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from searchrl.data.storage import sha256
from searchrl.models.options import HttpModelOptions, LocalModelOptions
from searchrl.models.tokenizers import model_path


def model_identity(options: LocalModelOptions | HttpModelOptions) -> str:
    """The identity of the model that a section names."""
    if isinstance(options, HttpModelOptions):
        return options.name
    return weights_identity(options.model)


def weights_identity(model: str) -> str:
    """``sha256:...`` over the safetensors files of a model's directory, or the name as it is."""
    files = sorted(Path(model_path(model)).glob("*.safetensors"))
    if not files:
        return model
    if len(files) == 1:
        return f"sha256:{sha256(files[0])}"
    digest = hashlib.sha256("".join(sha256(file) for file in files).encode())
    return f"sha256:{digest.hexdigest()}"
