"""ONNX files of a classifier: exported from torch, fused and quantized by ONNX Runtime's own tools, and checked.

ONNX Runtime's optimizer for BERT puts a whole attention block, an embedding sum with its LayerNorm, or a bias with its
GELU into one operator each. What a file really runs is counted in the graph that a session has made of it.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compress.errors import UserError

FILE = "model.onnx"
OPSET = 17
INPUTS = ("input_ids", "attention_mask")
INTEGER_PRODUCTS = {
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
}
FLOAT_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention"}
FUSED_ATTENTION = {"Attention", "QAttention", "MultiHeadAttention"}
# Every operator that holds weights of BERT, in either form of the graph.
QUANTIZED = ["MatMul", "Gemm", "Gather", "Attention", "EmbedLayerNormalization"]


def export(model, path: Path) -> None:
    """Writes the torch classifier as ONNX: int64 input_ids and attention_mask [batch, length] -> logits, both free.

    Raises onnx.checker.ValidationError if the file is not valid ONNX.
    """
    import warnings

    import onnx
    import torch

    class Logits(torch.nn.Module):
        """Positional arguments in a fixed order: by keyword the exporter can swap mask and token types."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    ids = torch.full((2, 8), 5)
    both = {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of shapes that are constants, as they should be
        torch.onnx.export(
            Logits().eval(),
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
    """The same model with ONNX Runtime's fused operators for BERT; `half` stores weights as float16 and computes so."""
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(str(source), model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
    if half:
        model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(str(target))


def quantize_dynamic(source: Path, target: Path) -> None:
    """int8 weights, per row; uint8 embedding tables, of one scale each; activations become uint8 call by call."""
    import logging

    from onnx import TensorProto
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    logging.disable(logging.WARNING)  # it advises a pre-processing that does not know the fused operators
    try:
        quantize(
            str(source),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTIZED,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # nor does shape inference
        )
    finally:
        logging.disable(logging.NOTSET)


def quantize_static(source: Path, target: Path, ids: Sequence[Sequence[int]], method: str) -> None:
    """int8 weights, and activations whose range is fixed by `method` (minmax, percentile) on sentences `ids`.

    All sentences must have one length: histograms of unlike shapes don't add up, and padding would be calibrated, too.
    Entropy calibration is left out: with the 128 bins that this quantizer gives it, it clips nothing and is minmax.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
    }
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize(
        str(prepared),
        str(target),
        Reader(ids),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],  # other operators would cost 2 to 4 points of F1
        nodes_to_exclude=products_of_activations(prepared),
        calibrate_method=methods[method],
    )
    prepared.unlink()


def products_of_activations(path: Path) -> list[str]:
    """Names of the MatMuls inside attention, whose inputs both change from call to call: they stay float."""
    import onnx

    graph = onnx.load(str(path)).graph
    constant = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not constant & set(node.input)]


class Reader:
    """Calibration sentences as ONNX Runtime's quantizer asks for them, one at a time."""

    def __init__(self, ids: Sequence[Sequence[int]]):
        self.rows = (np.array([row], np.int64) for row in ids)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self.rows, None)
        return None if row is None else dict(zip(INPUTS, (row, np.ones_like(row)), strict=True))


def of_one_length(ids: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
    """The first `count` sentences of the length that occurs most often: real ones, not a padding among them."""
    length = Counter(map(len, ids)).most_common(1)[0][0]
    return [row for row in ids if len(row) == length][:count]


def session(path: Path, threads: int, optimized: Path | None = None):
    """An inference session on the CPU with that many threads; `optimized` is where its own graph is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # a plan of memory for each shape that comes costs memory and saves no time
    options.log_severity_level = 3  # else it warns that an optimized graph suits this machine only: so it should
    if optimized:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common class
        raise UserError(f"{path}: ONNX Runtime can't load it: {error}") from None


def inspect(path: Path) -> dict:
    """What the file holds and what runs: bytes of its initializers by type, products by kind, fused attention blocks.

    half_products are those of the float ones whose weights are still of 16 bits when they run. Operators are counted in
    the graph as the session has rewritten it, since that is what runs.
    """
    import onnx

    held: Counter = Counter()
    for tensor in onnx.load(str(path)).graph.initializer:
        held[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += onnx.numpy_helper.to_array(tensor).nbytes
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / FILE
        session(path, 1, optimized)
        graph = onnx.load(str(optimized)).graph
    operators = Counter(node.op_type for node in graph.node)
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    return {
        "initializer_bytes": dict(sorted(held.items())),
        "integer_products": sum(operators[name] for name in INTEGER_PRODUCTS),
        "float_products": sum(operators[name] for name in FLOAT_PRODUCTS) + operators["MatMulNBits"],
        "half_products": sum(node.op_type in FLOAT_PRODUCTS and bool(half & set(node.input)) for node in graph.node),
        "fused_attention": sum(operators[name] for name in FUSED_ATTENTION),
    }


def precision_of(facts: dict) -> str:
    """int8 if most of the matrix products that inspect() has found are, else fp16 if any is."""
    if facts["integer_products"] > facts["float_products"]:
        return "int8"
    return "fp16" if facts["half_products"] else "fp32"
