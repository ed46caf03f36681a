"""ONNX files of a classifier: exported from torch, then fused and quantized by ONNX Runtime's tools.

ONNX Runtime's optimizer for BERT turns an attention block, an embedding sum with its LayerNorm, or a bias with its GELU
into one operator each.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from compress.engines.predictor import INPUTS, feeds
from onnx import TensorProto
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.optimizer import optimize_model

OPSET = 17
# Every operator that holds weights of BERT, in the fused and in the plain graph.
QUANTIZED = ["MatMul", "Gemm", "Gather", "Attention", "EmbedLayerNormalization"]
CALIBRATIONS = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}


class Logits(torch.nn.Module):
    """A classifier with positional arguments: with keywords the exporter can swap mask and token types."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export_onnx(model: torch.nn.Module, path: Path) -> None:
    """Writes the torch classifier as ONNX: int64 input_ids and attention_mask [batch, length] -> logits.

    Batch and length are free. Raises onnx.checker.ValidationError if the file is not valid ONNX.
    """
    ids = torch.full((2, 8), 5)
    both = {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of constant shapes, which are intended
        torch.onnx.export(
            Logits(model).eval(),
            (ids, torch.ones_like(ids)),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes={name: both for name in INPUTS} | {"logits": {0: "batch"}},
        )
    onnx.checker.check_model(str(path), full_check=True)


def fuse(source: Path, target: Path, half: bool = False) -> None:
    """The same model with ONNX Runtime's fused operators for BERT; half=True stores and computes float16."""
    model = optimize_model(str(source), model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
    if half:
        model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(str(target))


def quantize_onnx_dynamic(source: Path, target: Path, reduced_range: bool = False) -> None:
    """int8 weights per row, uint8 embedding tables with one scale each; activations become uint8 at each call.

    reduced_range: weights from -64 to 64, so that two products with uint8 fit into the 16 bits that CPUs without VNNI
    add them in.
    """
    logging.disable(logging.WARNING)  # it recommends a pre-processing that does not know the fused operators
    try:
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=reduced_range,
            op_types_to_quantize=QUANTIZED,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # shape inference does not know them, either
        )
    finally:
        logging.disable(logging.NOTSET)


def quantize_onnx_static(
    source: Path, target: Path, ids: Sequence[Sequence[int]], method: str, reduced_range: bool = False
) -> None:
    """int8 weights, and activation ranges fixed by `method` (minmax, percentile) on the sentences `ids`.

    reduced_range: as in quantize_onnx_dynamic.

    For percentiles all sentences must have the same length: histograms of different shapes can't be added. Entropy
    calibration is not offered: with the quantizer's 128 bins it clips nothing and equals minmax.
    """
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        CalibrationReader(ids),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        reduce_range=reduced_range,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],  # other operators would cost 2 to 4 points of F1
        nodes_to_exclude=products_of_activations(prepared),
        calibrate_method=CALIBRATIONS[method],
    )
    prepared.unlink()


def products_of_activations(path: Path) -> list[str]:
    """Names of the MatMuls of two activations, inside attention: they stay float."""
    graph = onnx.load(str(path)).graph
    constant = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not constant & set(node.input)]


class CalibrationReader:
    """Calibration sentences in the form that ONNX Runtime's quantizer reads, one at a time."""

    def __init__(self, ids: Sequence[Sequence[int]]):
        self.inputs = feeds(ids)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)
