"""ONNX Runtime: runs ONNX files on the CPU, and counts what a session really computes.

The library onnx is imported only to inspect a file: running one does not need it.
"""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
from compress.engines.predictor import Predictor, named_inputs, require_cpu
from compress.errors import UserError
from compress.storage.artifact import Artifact

FILE = "model.onnx"
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


class OrtPredictor(Predictor):
    def __init__(self, session: onnxruntime.InferenceSession, precision: str, threads: int):
        self.session, self.precision, self.threads = session, precision, threads
        self.names = [entry.name for entry in session.get_inputs()]

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self.session.run(None, named_inputs(self.names, input_ids, attention_mask))[0]


def load_onnx(folder: Path, artifact: Artifact, device: str, threads: int) -> OrtPredictor:
    require_cpu(folder, artifact, device)
    # ONNX Runtime does not report the precision of its kernels: it was counted when the file was written.
    return OrtPredictor(open_session(folder / FILE, threads), artifact.runtime["precision"], threads)


def open_session(path: Path, threads: int, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """An inference session on the CPU; its optimized graph is written to `optimized` if that is given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that still spin after a call would slow down the next model's: a cascade took 2.5 times as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_mem_pattern = False  # a memory plan per input shape takes memory and saves no time
    options.log_severity_level = 3  # no warning that an optimized graph fits this machine only, which is intended
    if optimized:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common class
        raise UserError(f"{path}: ONNX Runtime can't load it: {error}") from None


def inspect_onnx(path: Path) -> dict:
    """Bytes of the file's initializers by type, and the operators of the graph that runs.

    integer_products, float_products: matrix products by kind; half_products: those of the float ones whose weights are
    16-bit floats; fused_attention: attention blocks in one operator. Operators are counted in the graph as the session
    rewrites it, since that is what runs.
    """
    import onnx  # noqa: PLC0415

    stored: Counter = Counter()
    for tensor in onnx.load(str(path)).graph.initializer:
        stored[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += onnx.numpy_helper.to_array(tensor).nbytes
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        optimized = Path(folder) / FILE
        open_session(path, 1, optimized)
        graph = onnx.load(str(optimized)).graph
    operators = Counter(node.op_type for node in graph.node)
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    return {
        "initializer_bytes": dict(sorted(stored.items())),
        "integer_products": sum(operators[name] for name in INTEGER_PRODUCTS),
        "float_products": sum(operators[name] for name in FLOAT_PRODUCTS) + operators["MatMulNBits"],
        "half_products": sum(node.op_type in FLOAT_PRODUCTS and bool(half & set(node.input)) for node in graph.node),
        "fused_attention": sum(operators[name] for name in FUSED_ATTENTION),
    }


def onnx_precision(facts: dict) -> str:
    """From inspect_onnx(): int8 if most matrix products are, otherwise fp16 if any is, otherwise fp32."""
    if facts["integer_products"] > facts["float_products"]:
        return "int8"
    return "fp16" if facts["half_products"] else "fp32"
