"""HW4, inference engines: a checkpoint as an ONNX file for ONNX Runtime, or as an OpenVINO model.

Reads build/<profile>/data/ and the parent's model; writes the model and its record to
build/<profile>/seed<k>/<variant>/.
Example: .venv/bin/python scripts/05_export.py --profile minilm finetuned-ort-int8
"""

import argparse

from compress.cli import build_parser, main_guard


def main(args: argparse.Namespace) -> int:
    from compress.graph.building import build
    from compress.methods.export import onnx, openvino

    return build(args, {"onnx": onnx, "openvino": openvino})


if __name__ == "__main__":
    main_guard(main, build_parser(__doc__))
