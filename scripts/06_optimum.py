"""HW6: exports and quantization by Hugging Face Optimum, PyTorch's own fast paths, and cascades of two models.

Reads build/<profile>/data/ and the models of the parents; writes the model and its record to
build/<profile>/seed<k>/<variant>/.
Example: .venv/bin/python scripts/06_optimum.py --profile minilm optimum-ort-o2
"""

import argparse

from compress.cli import build_parser, main_guard


def main(args: argparse.Namespace) -> int:
    from compress.graph.building import build
    from compress.methods.cascade import cascade
    from compress.methods.hf_optimum import optimum_intel, optimum_onnx, torch_runtime

    makers = {"optimum-onnx": optimum_onnx, "optimum-intel": optimum_intel, "torch": torch_runtime}
    return build(args, makers | {"cascade": cascade})


if __name__ == "__main__":
    main_guard(main, build_parser(__doc__))
