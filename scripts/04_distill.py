"""HW3, knowledge distillation: smaller students that learn from the fine-tuned teacher, and their controls.

Reads build/<profile>/data/ and the models of the parent and the baseline; writes the model and its record to
build/<profile>/seed<k>/<variant>/. An interrupted training resumes from its last checkpoint.
Example: .venv/bin/python scripts/04_distill.py --profile minilm distill-3x384
"""

import argparse

from compress.cli import build_parser, main_guard


def main(args: argparse.Namespace) -> int:
    from compress.graph.building import build
    from compress.methods.distill import cut, distill, trim

    return build(args, {"distill": distill, "cut": cut, "trim": trim})


if __name__ == "__main__":
    main_guard(main, build_parser(__doc__))
