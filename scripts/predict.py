"""Answers of any variant, whatever its backend: texts from the command line, or a text a line from standard input.

Writes CSV (text, label, score) or JSON lines with the score of every class. The score is the softmax of the logits.
Text is UTF-8; a byte that is not becomes U+FFFD.
Example: python scripts/predict.py --model build/minilm/models/champion-balanced "A film that grows on you."
"""

import argparse
import csv
import itertools
import json
import os
import sys
import warnings
from pathlib import Path

from compress.cli import cores, main_guard, positive

CHUNK = 512  # texts that are answered before the next are read


def main(args: argparse.Namespace) -> None:
    from compress.engines.predictor import load, load_tokenizer, predict, token_ids
    from compress.metrics import softmax
    from compress.storage.artifact import read_artifact

    # torch announces that int8 modules of its own, which some variants are, will move to another package.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    model = load(args.model, args.device, args.threads)  # checks the files, the tokenizer's among them
    artifact = read_artifact(args.model, verify=False)
    tokenizer = load_tokenizer(args.model, artifact.max_length)
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    given = (os.fsencode(text).decode("utf-8", "replace") for text in args.text)
    texts = iter(given if args.text else (line.rstrip("\r\n") for line in sys.stdin))
    table = csv.writer(sys.stdout, lineterminator="\n")
    if args.format == "csv":
        table.writerow(["text", "label", "score"])
    while chunk := list(itertools.islice(texts, CHUNK)):
        ids = token_ids(tokenizer, chunk)
        for text, scores in zip(chunk, softmax(predict(model, ids, args.batch_size)), strict=True):
            label = artifact.labels[scores.argmax()]
            if args.format == "csv":
                table.writerow([text, label, f"{scores.max():.4f}"])
            else:
                rounded = {name: round(float(score), 4) for name, score in zip(artifact.labels, scores, strict=True)}
                print(json.dumps({"text": text, "label": label, "scores": rounded}, ensure_ascii=False))
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", help="texts to classify (default: the lines of standard input)")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a variant's folder")
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=cores(), help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=positive, default=1, help="more is faster; dynamic int8 then answers a little differently"
    )
    main_guard(main, parser)
