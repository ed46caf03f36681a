"""A smaller WordPiece vocabulary: the pieces that the texts use, and every single character to spell the rest.

Greedy longest match splits a text as before if all its pieces are kept. Other words are split into shorter pieces, at
worst into characters, so that no word becomes [UNK] that was not [UNK] before. This needs a vocabulary that holds each
of its characters both with and without ##, as Google's do.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from compress.engines.predictor import load_tokenizer, token_ids
from compress.errors import Skip, UserError
from compress.files import write_json
from compress.methods import distributed
from compress.methods.made import Context
from compress.methods.transfer import learning_data
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import nn

CONTINUES = "##"


def trim_vocabulary(model: nn.Module, source: Path, context: Context, size: int) -> Path:
    """Cuts the model's embeddings to `size` pieces in place; returns the folder of the matching tokenizer.

    source: the folder of the model's tokenizer. Pieces are ranked by their counts in training text first, then in
    unlabelled text; test sets and held-out texts are not used. Raises Skip if the vocabulary is not WordPiece.
    """
    tokenizer = load_tokenizer(source, context.profile.data.max_length)
    if not isinstance(tokenizer.model, WordPiece):
        raise Skip(f"only a WordPiece vocabulary can be trimmed; this one is {type(tokenizer.model).__name__}'s")
    counts = [count_pieces(tokenizer, texts) for texts, _ in learning_data(context.splits).values()]
    kept = choose_pieces(tokenizer, counts, size)
    folder = context.work / "tokenizer"
    with distributed.main_first():
        if distributed.is_main():
            write_trimmed(source, folder, kept)
    trim_embeddings(model, kept)
    return folder


def count_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """How often each piece occurs: int64 [pieces]."""
    return np.bincount([i for row in token_ids(tokenizer, texts) for i in row], minlength=tokenizer.get_vocab_size())


def choose_pieces(tokenizer: Tokenizer, counts: Sequence[np.ndarray], size: int) -> list[int]:
    """Old ids, ascending, of at most `size` pieces: specials, single characters, then the most frequent.

    counts: one count_pieces() per set of texts, where each set breaks the ties of the one before it. Pieces that never
    occur are left out even if there is room. Raises UserError if specials and characters alone exceed `size`.
    """
    vocabulary = tokenizer.get_vocab()
    kept = set(tokenizer.get_added_tokens_decoder())
    kept |= {i for piece, i in vocabulary.items() if len(piece.removeprefix(CONTINUES)) == 1}
    if len(kept) > size:
        raise UserError(f"vocabulary: {size} pieces are too few: the specials and characters alone are {len(kept)}")
    by_count = np.lexsort([np.arange(len(counts[0])), *(-count for count in reversed(counts))])
    seen = [int(i) for i in by_count if i not in kept and any(count[i] for count in counts)]
    return sorted(kept | set(seen[: size - len(kept)]))


def write_trimmed(source: Path, folder: Path, kept: Sequence[int]) -> None:
    """Writes the tokenizer files of `source` into a new `folder`; the pieces `kept` get the ids 0, 1, 2...

    Normalizer, pre-tokenizer and templates stay the same; the ids of special tokens change wherever the file has them.
    """
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    pieces = {i: piece for piece, i in tokenizer["model"]["vocab"].items()}
    vocabulary = {pieces[old]: new for new, old in enumerate(kept)}
    tokenizer["model"]["vocab"] = vocabulary
    for token in tokenizer["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    processor = tokenizer["post_processor"]
    for special in processor.get("special_tokens", {}).values():  # of a template, as BERT's
        special["ids"] = [vocabulary[token] for token in special["tokens"]]
    for end in {"cls", "sep"} & processor.keys():  # of RobertaProcessing, as MPNet's
        processor[end] = [processor[end][0], vocabulary[processor[end][0]]]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", tokenizer)
    shutil.copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")


def trim_embeddings(model: nn.Module, kept: Sequence[int]) -> None:
    """Keeps the rows `kept` of the word embeddings, in this order; changes the config, too, in place.

    Raises UserError if the padding was removed, or would get another id in an MPNet, which counts positions by a fixed
    one.
    """
    if model.config.pad_token_id not in kept:
        raise UserError(f"vocabulary: config.json's pad_token_id {model.config.pad_token_id} is no special token")
    pad_id = kept.index(model.config.pad_token_id)
    if model.config.model_type == "mpnet" and pad_id != model.config.pad_token_id:
        raise UserError(f"vocabulary: padding must stay piece {model.config.pad_token_id}, but became {pad_id}")
    rows = model.get_input_embeddings().weight.detach()[torch.tensor(kept)]
    model.set_input_embeddings(nn.Embedding(*rows.shape, padding_idx=pad_id, _weight=rows))
    model.config.vocab_size = len(rows)
    model.config.pad_token_id = pad_id
