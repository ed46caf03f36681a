"""Classifies texts with any model, whatever its backend: from the command line, or one per line from standard input.

Writes CSV (text, label, score) or JSON lines with the score of every class; scores are the softmax of the logits. Input
must be UTF-8: the command ends at the first line that is not, and names it.
Example: .venv/bin/python scripts/predict.py --model champion-balanced "A film that grows on you."
"""

import argparse
import csv
import json
import os
import sys
import warnings
from collections.abc import Iterator

from compress.cli import main_guard, positive, run_parser, thread_count
from compress.cpu import cores
from compress.errors import UserError

CHUNK = 512  # texts classified before the next are read


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.cpu import warn_of_saturation
    from compress.engines.predictor import load, load_tokenizer, predict, token_ids
    from compress.metrics import softmax
    from compress.results.models import model_folder
    from compress.storage.artifact import read_artifact

    texts = decoded_texts(args.text)
    # torch deprecates its own int8 modules, which some variants consist of.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    folder = model_folder(load_profile(args.profile), args.model, args.seed, args.device)
    model = load(folder, args.device, args.threads)  # verifies the files, the tokenizer's included
    artifact = read_artifact(folder, verify=False)
    warn_of_saturation(artifact.variant, artifact.backend, model.precision, artifact.options)
    tokenizer = load_tokenizer(folder, artifact.max_length)
    table = csv.writer(sys.stdout, lineterminator="\n")
    if args.format == "csv":
        table.writerow(["text", "label", "score"])
    for chunk in chunks(texts):
        scores = softmax(predict(model, token_ids(tokenizer, chunk), args.batch_size))
        for text, row in zip(chunk, scores, strict=True):
            label = artifact.labels[row.argmax()]
            if args.format == "csv":
                table.writerow([text, label, f"{row.max():.4f}"])
            else:
                rounded = {name: round(float(score), 4) for name, score in zip(artifact.labels, row, strict=True)}
                print(json.dumps({"text": text, "label": label, "scores": rounded}, ensure_ascii=False))
        sys.stdout.flush()


def decoded_texts(arguments: list[str]) -> Iterator[str]:
    """The texts of the command line, or the lines of standard input."""
    if arguments:
        return (decode(os.fsencode(text), f"text {number}") for number, text in enumerate(arguments, 1))
    if sys.stdin is None:
        raise UserError("no texts: standard input is closed; give texts as arguments, or a file with < FILE")
    return (decode(line.rstrip(b"\r\n"), f"line {number}") for number, line in enumerate(sys.stdin.buffer, 1))


def chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    """Up to CHUNK texts at a time; an error comes after the texts before it."""
    chunk: list[str] = []
    try:
        for text in texts:
            chunk.append(text)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    except UserError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def decode(text: bytes, place: str) -> str:
    try:
        return text.decode("utf-8-sig")  # without the mark that some editors write at the start of a file
    except UnicodeDecodeError as error:
        about = f"byte 0x{error.object[error.start]:02x} after {error.start} others"
        raise UserError(f"{place} is not UTF-8 ({about}); convert the input: iconv -f ENCODING -t UTF-8") from None


if __name__ == "__main__":
    parser = run_parser(__doc__)
    parser.add_argument("text", nargs="*", help="texts to classify (default: the lines of standard input)")
    parser.add_argument("--model", required=True, help="a variant, a champion, or the folder of a model")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="default: %(default)s")
    parser.add_argument("--threads", type=thread_count, default=cores(), help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        help="more is faster, but changes predictions of dynamic int8 a little (default: %(default)s)",
    )
    main_guard(main, parser)
