"""OpenVINO: runs its models on the CPU, and counts what a compiled model really computes."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openvino
from compress.engines.predictor import Predictor, named_inputs, require_cpu
from compress.errors import UserError
from compress.storage.artifact import Artifact

FILE = "model.xml"
PRODUCTS = {"FullyConnected", "MatMul"}
INTEGERS = {"u8", "i8", "u4", "i4"}  # of the weights; where only these are rounded, OpenVINO rounds the inputs, too
PROPERTIES = (
    "PERFORMANCE_HINT",
    "NUM_STREAMS",
    "INFERENCE_NUM_THREADS",
    "INFERENCE_PRECISION_HINT",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
)


class OpenVINOPredictor(Predictor):
    """Single calls reuse one request; many() fills a queue with a request per stream."""

    length_step = 8  # OpenVINO compiles code for every shape, and keeps it

    def __init__(self, compiled: openvino.CompiledModel):
        self.compiled, self.request = compiled, compiled.create_infer_request()
        self.names = [entry.any_name for entry in compiled.inputs]
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        declared = property_text(compiled.get_property("INFERENCE_PRECISION_HINT"))
        integer, other = count_products(nodes(compiled))
        self.precision = "int8" if integer > other else {"f32": "fp32", "f16": "fp16"}.get(declared, declared)

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        # share_outputs stays off: the next call overwrites the request's own memory.
        return self.request.infer(named_inputs(self.names, input_ids, attention_mask), share_inputs=True)[0]

    def many(self, inputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        if self.compiled.get_property("NUM_STREAMS") == 1:
            return super().many(inputs)
        outputs = {}
        queue = openvino.AsyncInferQueue(self.compiled)
        queue.set_callback(lambda request, i: outputs.__setitem__(i, request.get_output_tensor().data.copy()))
        for i, (input_ids, mask) in enumerate(inputs):
            queue.start_async(named_inputs(self.names, input_ids, mask), i)
        queue.wait_all()
        return [outputs[i] for i in range(len(outputs))]


def load_openvino(folder: Path, artifact: Artifact, device: str, threads: int) -> OpenVINOPredictor:
    require_cpu(folder, artifact, device)
    return OpenVINOPredictor(compile_model(folder / FILE, threads, artifact.runtime))


def compile_model(path: Path, threads: int, properties: dict[str, str]) -> openvino.CompiledModel:
    """The compiled model on the CPU; `properties` are OpenVINO's own.

    Properties are read back: raises UserError if OpenVINO did not accept one, or can't load the file.
    """
    core = openvino.Core()
    # Processes that pin their threads all pin them to the same first cores, and compete for these.
    always = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, "CPU_RUNTIME_CACHE_CAPACITY": 5000}
    wanted = always | properties
    try:
        compiled = core.compile_model(str(path), "CPU", wanted)
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO can't load it: {error}") from None
    supported = compiled.get_property("SUPPORTED_PROPERTIES")
    actual = {name: property_text(compiled.get_property(name)) for name in wanted if name in supported}
    if wrong := {name: value for name, value in actual.items() if value != property_text(wanted[name])}:
        raise UserError(f"{path}: requested {wanted}, but OpenVINO uses {wrong}")
    return compiled


def property_text(value) -> str:
    """A property as one word: a type as f32, not as Python prints it."""
    return value.get_type_name() if hasattr(value, "get_type_name") else str(value)


def count_products(graph: list[tuple[str, str, str]]) -> tuple[int, int]:
    """(integer, other) matrix products in nodes(); fused ones are not counted."""
    types = [precision for kind, precision, _ in graph if kind in PRODUCTS]
    integer = sum(precision in INTEGERS for precision in types)
    return integer, len(types) - integer


def nodes(compiled: openvino.CompiledModel) -> list[tuple[str, str, str]]:
    """(kind, type that it runs in, names of the layers that it replaces) of every node of the compiled graph."""
    keys = ("layerType", "runtimePrecision", "originalLayersNames")
    about = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [tuple(item[key].value for key in keys) for item in about]


def inspect_openvino(path: Path, compiled: openvino.CompiledModel) -> dict:
    """Bytes of the file's constants by type, matrix products of the compiled graph by kind, and its properties."""
    stored: Counter = Counter()
    for node in openvino.Core().read_model(str(path)).get_ordered_ops():
        if node.get_type_name() == "Constant":
            stored[node.get_element_type().get_type_name()] += node.get_byte_size()
    graph = nodes(compiled)
    integer, other = count_products(graph)
    return {
        "initializer_bytes": dict(sorted(stored.items())),
        "integer_products": integer,
        "float_products": other,
        # Softmax within a larger node: the plugin fused the attention block into one kernel.
        "fused_attention": sum(kind != "Softmax" and "softmax" in names.lower() for kind, _, names in graph),
        "properties": {name: property_text(compiled.get_property(name)) for name in PROPERTIES},
    }
