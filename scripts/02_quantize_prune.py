"""HW1, quantization and pruning: int8, 16-bit and mixed weights, quantization-aware training, sparse and smaller nets.

Reads build/<profile>/data/ and the models of the parent and the baseline; writes the model and its record to
build/<profile>/seed<k>/<variant>/. An interrupted training resumes from its last checkpoint.
Example: .venv/bin/python scripts/02_quantize_prune.py --profile minilm prune-magnitude-70
"""

import argparse

from compress.cli import build_parser, main_guard


def main(args: argparse.Namespace) -> int:
    from compress.graph.building import build
    from compress.methods.gptq import weight_only
    from compress.methods.low_rank import low_rank
    from compress.methods.prune import prune, structured
    from compress.methods.quantize import cast, int8_dynamic, int8_saved, mixed_precision, qat, torchao
    from compress.methods.ternary_bert import ternary_bert

    return build(
        args,
        {
            "int8-dynamic": int8_dynamic,
            "int8-saved": int8_saved,
            "torchao": torchao,
            "cast": cast,
            "mixed-precision": mixed_precision,
            "qat": qat,
            "weight-only": weight_only,
            "ternary-bert": ternary_bert,
            "prune": prune,
            "structured": structured,
            "low-rank": low_rank,
        },
    )


if __name__ == "__main__":
    main_guard(main, build_parser(__doc__))
