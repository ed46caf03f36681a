"""HW6: exports and quantization by Hugging Face Optimum, and PyTorch's own fast paths.

Reads build/<profile>/data/ and the parent's model; writes the model and its record to
build/<profile>/seed<k>/<variant>/.
Example: python scripts/06_optimum.py --profile minilm optimum-ort-o2
"""

import argparse

from compress.cli import build_parser, main_guard


def main(args: argparse.Namespace) -> int:
    from compress.graph.building import build
    from compress.methods.hf_optimum import optimum_intel, optimum_onnx, torch_runtime

    return build(args, {"optimum-onnx": optimum_onnx, "optimum-intel": optimum_intel, "torch": torch_runtime})


if __name__ == "__main__":
    main_guard(main, build_parser(__doc__))
