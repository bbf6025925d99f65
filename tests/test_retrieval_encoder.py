"""Text encoders: vectors as transformers would compute them by hand, settings as models state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.encoder import (
    Encoder,
    EncoderSettings,
    Runtime,
    Side,
    load_encoder,
    open_encoder,
)
from searchrl.retrieval.options import DenseOptions
from tests.encoders import CORPUS, DIMENSION, write_dpr, write_encoder

TEXTS = ["a", "a longer text", "", "somewhat longer than that, and with 123 numbers", "a"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("models") / "plain")


def load(model: Path, side: Side = "query", **options: Any) -> Encoder:
    return load_encoder(DenseOptions(encoder=str(model), **options), side)


def by_hand(model: Path, text: str, pooling: str, normalise: bool, limit: int) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(model)(
        text, truncation=True, max_length=limit, return_tensors="pt"
    )
    with torch.no_grad():
        (hidden_TD,) = AutoModel.from_pretrained(model)(**tokens).last_hidden_state
    pooled = {"mean": hidden_TD.mean(0), "cls": hidden_TD[0], "last": hidden_TD[-1]}[pooling]
    return pooled / pooled.norm() if normalise else pooled


@pytest.mark.parametrize(
    ("pooling", "normalise", "limit"), [("mean", True, 64), ("cls", False, 9), ("last", True, 12)]
)
def test_vectors_are_those_computed_by_hand(
    model: Path, pooling: str, normalise: bool, limit: int
) -> None:
    encoder = load(
        model, pooling=pooling, normalise=normalise, max_length=limit, query_prefix="ask: "
    )
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), DIMENSION)
    for text, vector in zip(TEXTS, found, strict=True):
        expected = by_hand(model, "ask: " + text, pooling, normalise, limit).numpy()
        assert vector == pytest.approx(expected, abs=1e-5)


def test_a_text_alone_and_in_a_batch_has_one_vector(model: Path) -> None:
    together = load(model, batch_size=3).encode(TEXTS)
    alone = np.concatenate([load(model).encode([text]) for text in TEXTS])
    assert together == pytest.approx(alone, abs=1e-6)
    assert load(model).encode([]).shape == (0, DIMENSION)


def test_passages_are_encoded_with_their_title(model: Path) -> None:
    encoder = load(model, "passage", passage_prefix="passage: ")
    (vector,) = encoder.encode_passages(CORPUS[:1])
    text = f'passage: "Arbon"\n{CORPUS[0].text}'
    assert vector == pytest.approx(by_hand(model, text, "mean", True, 64).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "query", "passage", "pooling", "normalise"),
    [
        ("e5-base-v2", "query: ", "passage: ", "mean", True),
        ("multilingual-e5-large-instruct", "", "", "mean", True),
        ("bge-base-en-v1.5", "Represent this sentence for searching relevant passages: ", "",
         "cls", True),
        ("bge-m3", "", "", "cls", True),
        ("contriever-msmarco", "", "", "mean", False),
        ("dpr-ctx_encoder-single-nq-base", "", "", "cls", False),
        ("some-model", "", "", "mean", True),
    ],
)  # fmt: skip
def test_families_are_told_by_their_names(
    tmp_path: Path, name: str, query: str, passage: str, pooling: str, normalise: bool
) -> None:
    path = write_encoder(tmp_path / name)
    first = load(path)
    second = load_encoder(DenseOptions(encoder=str(path)), "passage", like=first)
    for encoder, prefix in ((first, query), (second, passage)):
        found = encoder.settings
        assert (found.prefix, found.pooling, found.normalise) == (prefix, pooling, normalise)


def test_the_files_of_sentence_transformers_decide_over_the_name(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "e5-mine")
    for file, content in {
        "modules.json": [{"type": "sentence_transformers.models.Transformer"}],
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "sentence_bert_config.json": {"max_seq_length": 33},
        "config_sentence_transformers.json": {"prompts": {"query": "Find: ", "document": ""}},
    }.items():
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(json.dumps(content))
    found = load(path).settings
    assert (found.prefix, found.pooling, found.normalise) == ("Find: ", "cls", False)
    assert found.max_length == 33
    assert load(path, query_prefix="", normalise=True, max_length=7).settings == (
        EncoderSettings(str(path), "", "cls", True, 7, DIMENSION, found.fingerprint)
    )


def test_a_limit_beyond_the_models_positions_is_lowered(model: Path) -> None:
    assert load(model).settings.max_length == 64
    assert load(model, max_length=1_000).encode(["word " * 500]).shape == (1, DIMENSION)


def test_dprs_encoder_of_passages_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    encoder = load(write_dpr(tmp_path / "dpr-ctx"), "passage")
    assert np.isfinite(encoder.encode(["one", "two words"])).all()
    assert encoder.settings.dimension == DIMENSION


class TestIdentity:
    def test_the_fingerprint_knows_a_model_wherever_and_however_it_is(
        self, model: Path, tmp_path: Path
    ) -> None:
        expected = load(model).settings.fingerprint
        assert load(model, dtype="bfloat16").settings.fingerprint == expected
        copy = write_encoder(tmp_path / "copy")
        other = write_encoder(tmp_path / "other", seed=1)
        settings = load(model).settings
        assert open_encoder(settings, Runtime(), tmp_path, str(copy)).encode(["x"]).any()
        with pytest.raises(InputError, match=r"built with another encoder than .*other"):
            open_encoder(settings, Runtime(), tmp_path, str(other))

    def test_a_changed_number_is_another_model(self, model: Path, tmp_path: Path) -> None:
        network = AutoModel.from_pretrained(model)
        with torch.no_grad():
            network.encoder.layer[0].output.dense.bias[0] += 0.01
        network.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
        assert load(tmp_path).settings.fingerprint != load(model).settings.fingerprint

    def test_settings_survive_a_manifest(self, model: Path, tmp_path: Path) -> None:
        settings = load(model).settings
        row = json.loads(json.dumps(settings.to_row()))
        assert EncoderSettings.from_row(row, tmp_path) == settings
        with pytest.raises(IntegrityError, match="encoder settings"):
            EncoderSettings.from_row({"model": "x"}, tmp_path)


class TestRefusals:
    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such directory"):
            load(tmp_path / "absent")

    def test_weights_in_another_form_than_safetensors(self, model: Path, tmp_path: Path) -> None:
        path = write_encoder(tmp_path / "pickled")
        torch.save(AutoModel.from_pretrained(path).state_dict(), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
        with pytest.raises(InputError, match="cannot be loaded"):
            load(path)

    def test_weights_that_are_not_whole(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = write_encoder(tmp_path / "half")
        weights = load_file(path / "model.safetensors")
        del weights["embeddings.word_embeddings.weight"]
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=r"lack 'embeddings\.word"):
            load(path)
