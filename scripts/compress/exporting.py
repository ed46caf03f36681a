"""What the stages 05 and 06 share: calibration sentences, the check that integers are multiplied, finished files."""

import shutil
from collections.abc import Callable
from pathlib import Path

from compress.files import remove
from compress.predict import load_tokenizer, token_ids
from compress.profile import UserError


def sentences(context, split: str, count: int | None = None) -> list[list[int]]:
    """Token ids of the first `count` sentences of a split, or of all, as the parent's tokenizer has them."""
    tokenizer = load_tokenizer(context.parent, context.profile.data.max_length)
    return token_ids(tokenizer, context.splits[split]["text"][:count])


def check_integers(facts: dict) -> None:
    """Raises UserError if a file that was quantized multiplies no integers when it runs."""
    if not facts["integer_products"]:
        raise UserError("quantized, but the engine multiplies no integers")


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    remove(folder)
    folder.mkdir(parents=True)
    return folder


def copying(files: dict[Path, str]) -> Callable[[Path], None]:
    """A function that copies each file into a folder, under its new name."""

    def write(folder: Path) -> None:
        for file, name in files.items():
            shutil.copyfile(file, folder / name)

    return write
