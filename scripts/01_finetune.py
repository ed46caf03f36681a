"""Baselines: the pretrained encoder with an untrained head (bert-orig), the same network fine-tuned (finetuned), and
classifiers without an encoder (tfidf, static).

Reads build/<profile>/data/; writes the model and its record to build/<profile>/seed<k>/<variant>/.
An interrupted training resumes from its last checkpoint. `make all` runs this script for each of its variants.
Example: .venv/bin/python scripts/01_finetune.py --profile minilm finetuned
"""

import argparse

from compress.cli import build_parser, main_guard


def main(args: argparse.Namespace) -> int:
    from compress.graph.building import build
    from compress.methods.baseline import finetuned, untrained
    from compress.methods.no_encoder import static, tfidf

    return build(args, {"finetune": finetuned, "untrained": untrained, "tfidf": tfidf, "static": static})


if __name__ == "__main__":
    main_guard(main, build_parser(__doc__))
