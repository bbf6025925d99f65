"""The directory of an adapter in PEFT's form, as far as it can be read without PyTorch.

Beside PEFT's two files ``base.json`` says which weights the adapter was trained on: on others it
would still load, and be wrong.
"""

from __future__ import annotations

import json
from pathlib import Path

from searchrl.data.storage import write_json
from searchrl.errors import InputError, IntegrityError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BASE = "base.json"


def is_adapter(model: str) -> bool:
    """Whether a model's name leads to an adapter."""
    return (Path(model) / CONFIG).is_file()


def base_of_adapter(folder: Path) -> str:
    """The name of the model that an adapter belongs onto.

    Raises:
        InputError: it is not said, or it leads nowhere.
    """
    file = folder / CONFIG
    try:
        base = json.loads(file.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: names no base_model_name_or_path") from error
    if not isinstance(base, str) or not base:
        raise InputError(f"{file}: base_model_name_or_path is {base!r}; name the base model")
    if base.startswith(("/", ".")) and not Path(base).is_dir():
        raise InputError(
            f"{file}: its base {base} is not there; put it back or correct base_model_name_or_path"
        )
    return base


def write_base(folder: Path, identity: str) -> None:
    """Note the identity of the weights that an adapter was trained on."""
    write_json(folder / _BASE, {"weights": identity})


def base_identity(folder: Path) -> str | None:
    """What ``write_base`` noted; ``None`` for an adapter that another program wrote.

    Raises:
        IntegrityError: the note cannot be read.
    """
    file = folder / _BASE
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_bytes())["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{file}: damaged") from error
