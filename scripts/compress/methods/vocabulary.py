"""A smaller WordPiece vocabulary: the pieces that the texts use, and every single character to spell the rest.

Greedy longest match finds the same pieces as before in text whose pieces are all kept. Other words fall into shorter
pieces, at worst into characters, so that nothing turns into [UNK] that was known before: this needs a vocabulary
that holds each of its characters both with and without ##, as Google's do.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compress.engines.predictor import token_ids
from compress.errors import UserError
from compress.files import write_json
from tokenizers import Tokenizer

CONTINUES = "##"


def count_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """How often each piece occurs: int64 [pieces]."""
    return np.bincount([i for row in token_ids(tokenizer, texts) for i in row], minlength=tokenizer.get_vocab_size())


def choose_pieces(tokenizer: Tokenizer, counts: Sequence[np.ndarray], size: int) -> list[int]:
    """Old ids, ascending, of at most `size` pieces: specials, single characters, then the most frequent.

    counts: one count_pieces per text, the first decides, the next breaks its ties. Pieces that never occur are left
    out even when there is room. Raises UserError if the specials and characters alone are more than `size`.
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
    """Writes the tokenizer files of `source` into a new `folder`, with the pieces `kept` under the ids 0, 1, 2...

    Normalizer, pre-tokenizer and templates stay as they are; the specials' ids change wherever the file names them.
    """
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    pieces = {i: piece for piece, i in tokenizer["model"]["vocab"].items()}
    vocabulary = {pieces[old]: new for new, old in enumerate(kept)}
    tokenizer["model"]["vocab"] = vocabulary
    for token in tokenizer["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    for special in tokenizer["post_processor"]["special_tokens"].values():
        special["ids"] = [vocabulary[token] for token in special["tokens"]]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", tokenizer)
    shutil.copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")


def trim_embeddings(model, kept: Sequence[int], pad_id: int = 0) -> None:
    """Keeps the rows `kept` of the word embeddings, in this order; the config says so, in place."""
    import torch
    from torch import nn

    rows = model.get_input_embeddings().weight.detach()[torch.tensor(kept)]
    model.set_input_embeddings(nn.Embedding(*rows.shape, padding_idx=pad_id, _weight=rows))
    model.config.vocab_size = len(rows)
    model.config.pad_token_id = pad_id
