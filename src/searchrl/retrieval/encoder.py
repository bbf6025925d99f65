"""Text encoders: a transformer, one vector a text, and everything that vector depends on.

E5, BGE, Contriever, DPR and any model of sentence-transformers or plain transformers are read from
a directory or the hub, safetensors only, and none of their code is run. Pooling, scaling, prefix
and limit are resolved once into ``EncoderSettings``, kept in an index with a fingerprint of the
weights, and compared when the index is opened: a query is never encoded otherwise than its passages
expect.

Differs from the peers: a prefix is the model's, for queries and passages alike; Search-R1 prefixes
queries of ``e5-base-v2`` and not its passages. DPR's passages are one text, not a pair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from searchrl.data.passages import Passage
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.batches import token_batches, token_lists
from searchrl.retrieval.networks import load_network, longest_input
from searchrl.retrieval.options import AnyForm, Pooling, VectorOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from searchrl.retrieval.packed_encoder import PackedNetwork

Side = Literal["query", "passage"]
DEFAULT_MAX_LENGTH = 256
"""Of a model that states none; the peers' servers and index scripts use it for all."""
_FINGERPRINT_SAMPLES = 1024
_MODES: Mapping[str, Pooling] = {"cls_token": "cls", "lasttoken": "last", "mean_tokens": "mean"}
"""How sentence-transformers calls the ways of pooling."""
_BGE_QUERY = "Represent this sentence for searching relevant passages: "


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Everything the vector of a text depends on.

    Attributes:
        model: path or hub name.
        prefix: put before every text.
        pooling: how token vectors become one.
        normalise: whether vectors are scaled to length 1.
        max_length: in tokens, special ones included.
        dimension: of the vectors.
        fingerprint: hex digest of a sample of the weights.
    """

    model: str
    prefix: str
    pooling: Pooling
    normalise: bool
    max_length: int
    dimension: int
    fingerprint: str

    def to_row(self) -> dict[str, Any]:
        """The form a manifest keeps."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Any, where: Path) -> EncoderSettings:
        """Read what ``to_row`` wrote.

        Raises:
            IntegrityError: it is something else.
        """
        try:
            return cls(**row)
        except TypeError as error:
            raise IntegrityError(f"{where}: encoder settings of another form") from error


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where and how fast encoders run; of no influence on what they compute but rounding.

    Attributes:
        device: as in ``cpu`` or ``cuda:0``.
        dtype: number form of the weights. ``auto`` is bfloat16 where a processor is made for it
            and a text keeps its vector in any batch, and float32 elsewhere.
        batch_size: texts at once.
    """

    device: str = "cpu"
    dtype: AnyForm = "float32"
    batch_size: int = 64


class Encoder:
    """Turns texts of one side into vectors.

    Args:
        network: gives token vectors; on its device, in its number form, as it is or packed.
        tokenizer: its tokenizer.
        settings: see there.
        batch_size: texts at once.
    """

    def __init__(
        self,
        network: PreTrainedModel | PackedNetwork,
        tokenizer: PreTrainedTokenizerBase,
        settings: EncoderSettings,
        batch_size: int,
    ) -> None:
        self.settings = settings
        self._network = network
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of texts, shape ``(len(texts), dimension)``."""
        import torch

        prefixed = [self.settings.prefix + text for text in texts]
        vectors = np.empty((len(texts), self.settings.dimension), np.float32)
        with torch.inference_mode():
            for places, pooled_BD in self._pooled(prefixed):
                if self.settings.normalise:
                    pooled_BD = torch.nn.functional.normalize(pooled_BD, dim=-1)
                vectors[places] = pooled_BD.cpu().numpy()
        return vectors

    def encode_passages(self, passages: Iterable[Passage]) -> npt.NDArray[np.float32]:
        """Vectors of passages, each as ``"Title"``, newline, text, or its text alone."""
        return self.encode([p.contents if p.title else p.text for p in passages])

    def for_side(self, settings: EncoderSettings) -> Encoder:
        """The same network with other settings."""
        return Encoder(self._network, self._tokenizer, settings, self._batch_size)

    def _pooled(self, texts: Sequence[str]) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yield ``(places in texts, their vectors before scaling)``."""
        from searchrl.retrieval.packed_encoder import PackedNetwork

        if isinstance(self._network, PackedNetwork):
            return self._pooled_packed(self._network, texts)
        return self._pooled_padded(self._network, texts)

    def _pooled_packed(
        self, network: PackedNetwork, texts: Sequence[str]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        import torch

        for places, tokens in token_lists(
            self._tokenizer, texts, self.settings.max_length, self._batch_size
        ):
            for place, hidden_TD in zip(places, network.hidden(tokens), strict=True):
                mask_BT = torch.ones(1, len(hidden_TD))
                yield [place], _pooled(hidden_TD.unsqueeze(0), mask_BT, self.settings.pooling)

    def _pooled_padded(
        self, network: PreTrainedModel, texts: Sequence[str]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        for places, tensors in token_batches(
            self._tokenizer, texts, None, self.settings.max_length, self._batch_size
        ):
            inputs = {name: each.to(network.device) for name, each in tensors.items()}
            output = network(**inputs)
            if not hasattr(output, "last_hidden_state"):  # DPR's answer with the first token's
                yield places, output.pooler_output.float()
                continue
            hidden_BTD, mask_BT = output.last_hidden_state.float(), inputs["attention_mask"]
            yield places, _pooled(hidden_BTD, mask_BT, self.settings.pooling)


def load_encoder(options: VectorOptions, side: Side, like: Encoder | None = None) -> Encoder:
    """Load the encoder of one side as the options and the model itself say.

    Args:
        options: what is asked for.
        side: what it encodes.
        like: the encoder of the other side, whose network is shared if it is the same.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
    """
    name = (options.passage_encoder if side == "passage" else None) or options.encoder
    if like is not None and like.settings.model == name:
        known = like.settings
        return like.for_side(replace(known, prefix=_prefix(options, side, _stated(name, side))))
    network, tokenizer = load_network("encoder", name, False, options.dtype, options.device)
    stated = _stated(name, side)
    settings = replace(
        stated,
        prefix=_prefix(options, side, stated),
        pooling=options.pooling or stated.pooling,
        normalise=stated.normalise if options.normalise is None else options.normalise,
        max_length=longest_input(network, options.max_length or stated.max_length),
        dimension=_dimension(network),
        fingerprint=fingerprint(network),
    )
    return Encoder(_at_work(network, options.dtype), tokenizer, settings, options.batch_size)


def open_encoder(
    settings: EncoderSettings, runtime: Runtime, where: Path, model: str | None = None
) -> Encoder:
    """Load the encoder that an index was built with.

    Args:
        settings: as the index keeps them.
        runtime: where it shall run.
        where: the index, for error messages.
        model: where the model lies now; where it lay then when left out.

    Raises:
        InputError: it cannot be loaded, or it is not the one the index was built with.
    """
    name = model or settings.model
    dtype = "float32" if runtime.dtype == "auto" else runtime.dtype
    network, tokenizer = load_network("encoder", name, False, dtype, runtime.device)
    found = fingerprint(network)
    if found != settings.fingerprint:
        raise InputError(
            f"{where}: was built with another encoder than {name} (its weights differ); "
            f"name the one it was built with, {settings.model}, or build the index again"
        )
    return Encoder(_at_work(network, runtime.dtype), tokenizer, settings, runtime.batch_size)


def fingerprint(network: PreTrainedModel) -> str:
    """Hex digest of evenly spaced weights of every tensor, whatever number form they are held in.

    It tells models apart, as the checksums of their files would, and takes no time at any size.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if "pooler." in name:  # unused, and random where a checkpoint lacks it
            continue
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _FINGERPRINT_SAMPLES)
        sample = flat[::step].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _at_work(network: PreTrainedModel, dtype: AnyForm) -> PreTrainedModel | PackedNetwork:
    """The network as it encodes: packed in bfloat16 on a CPU, where it is of a kind for that."""
    import torch

    from searchrl.retrieval.packed_encoder import PackedNetwork, packs

    chosen = dtype == "auto" and torch.cpu._is_amx_tile_supported()
    if (chosen or dtype == "bfloat16") and packs(network):
        return PackedNetwork(network.bfloat16())
    return network


def _prefix(options: VectorOptions, side: Side, stated: EncoderSettings) -> str:
    wanted = options.query_prefix if side == "query" else options.passage_prefix
    return stated.prefix if wanted is None else wanted


def _stated(name: str, side: Side) -> EncoderSettings:
    """What a model's files say about its use, and its family where they are silent."""
    family = _family(name, side)
    modules = _read(name, "modules.json")
    if not isinstance(modules, list):
        return family
    pooling = _read(name, "1_Pooling/config.json") or {}
    limit = (_read(name, "sentence_bert_config.json") or {}).get("max_seq_length")
    prompts = (_read(name, "config_sentence_transformers.json") or {}).get("prompts") or {}
    prefix = prompts.get("query" if side == "query" else "document") or family.prefix
    chosen = [each for mode, each in _MODES.items() if pooling.get(f"pooling_mode_{mode}")]
    return replace(
        family,
        prefix=str(prefix),
        pooling=chosen[0] if chosen else family.pooling,
        normalise=any(str(module.get("type", "")).endswith("Normalize") for module in modules),
        max_length=limit if isinstance(limit, int) and limit > 0 else family.max_length,
    )


def _family(name: str, side: Side) -> EncoderSettings:
    """The settings of a family of models, told by its name as the peers do."""
    family = Path(name).name.lower()
    query = side == "query"
    plain = EncoderSettings(name, "", "mean", True, DEFAULT_MAX_LENGTH, 0, "")
    if "dpr" in family:
        return replace(plain, pooling="cls", normalise=False)
    if "contriever" in family:
        return replace(plain, normalise=False)
    if "bge" in family:
        english = query and "-m3" not in family
        return replace(plain, pooling="cls", prefix=_BGE_QUERY if english else "")
    if "e5" in family and "instruct" not in family and "mistral" not in family:
        return replace(plain, prefix="query: " if query else "passage: ")
    return plain


def _read(name: str, file: str) -> Any:
    """A JSON file of a model, or None where it has no such file."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"encoder {name!r}: {file} is no JSON") from error


def _pooled(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector a row, from tokens that are padded on the right."""
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "last":
        last_B = mask_BT.sum(dim=1) - 1
        return hidden_BTD[range(len(last_B)), last_B]
    mask_BT1 = mask_BT.unsqueeze(-1)
    return (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)


def _dimension(network: PreTrainedModel) -> int:
    projection = getattr(network.config, "projection_dim", 0)  # DPR's
    return int(projection or network.config.hidden_size)
