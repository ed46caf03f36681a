"""OpenVINO models of a classifier: converted from ONNX, compressed by NNCF, and what the compiled model really runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from compress.errors import UserError

FILE = "model.xml"
INPUTS = ("input_ids", "attention_mask")
PRODUCTS = {"FullyConnected", "MatMul"}
INTEGERS = {"u8", "i8"}
PROPERTIES = ("PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT")


def feeds(ids: Sequence[Sequence[int]]) -> list[dict[str, np.ndarray]]:
    """Sentences as inputs of batch 1, at their real lengths."""
    rows = [np.array([row], np.int64) for row in ids]
    return [dict(zip(INPUTS, (row, np.ones_like(row)), strict=True)) for row in rows]


def post_training(model, ids: Sequence[Sequence[int]], smooth: bool):
    """int8 weights and activations by NNCF's preset for transformers, calibrated on sentences `ids`.

    `smooth` moves the range of an activation's outliers into the weights (SmoothQuant: Xiao et al., ICML 2023).
    """
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(feeds(ids)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(ids),
        preset=nncf.QuantizationPreset.MIXED,
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=_alphas(smooth)),
    )


def with_accuracy_control(model, ids, validation_ids, score: Callable[[np.ndarray], float], most: float):
    """As post_training with SmoothQuant; then the layers that cost most go back to float until at most `most` is lost.

    score: logits of `validation_ids` -> a number above 0, larger is better.
    """
    import nncf

    def validate(compiled, rows):
        return score(np.concatenate([compiled(row)[0] for row in rows])), None

    return nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(feeds(ids)),
        nncf.Dataset(feeds(validation_ids)),
        validate,
        max_drop=most,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(ids),
        preset=nncf.QuantizationPreset.MIXED,
        advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=_alphas(True)),
    )


def _alphas(smooth: bool):
    import nncf

    return nncf.AdvancedSmoothQuantParameters(matmul=0.95 if smooth else -1, convolution=-1)


def weights_only(model, mode: str):
    """Weights as 8-bit integers (int8), 4-bit ones in groups of 64 (int4), or 16 shared values (codebook).

    4 bits hold the embedding tables, too, and the last layer.
    """
    import nncf

    if mode == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    modes = {"int4": nncf.CompressWeightsMode.INT4_SYM, "codebook": nncf.CompressWeightsMode.CB4}
    return nncf.compress_weights(model, mode=modes[mode], ratio=1.0, group_size=64, all_layers=True)


def compile_model(path: Path, threads: int, properties: dict[str, str]):
    """The compiled model on the CPU; `properties` are OpenVINO's own, and are read back: UserError if one is not so."""
    import openvino

    core = openvino.Core()
    # Processes that pin their threads all pin them to the first cores, and wait for each other there.
    always = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, "CPU_RUNTIME_CACHE_CAPACITY": 5000}
    asked = always | properties
    try:
        compiled = core.compile_model(str(path), "CPU", asked)
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO can't load it: {error}") from None
    wrong = {
        name: text(compiled.get_property(name))
        for name, value in asked.items()
        if name in compiled.get_property("SUPPORTED_PROPERTIES") and text(compiled.get_property(name)) != text(value)
    }
    if wrong:
        raise UserError(f"{path}: asked for {asked}, OpenVINO has taken {wrong}")
    return compiled


def text(value) -> str:
    """A property as one word: a type as f32, not as Python shows it."""
    return value.get_type_name() if hasattr(value, "get_type_name") else str(value)


def products(graph: list[tuple[str, str, str]]) -> dict[str, int]:
    """Matrix products among nodes() by the type they run in: {'u8': 38}; fused ones are not among them."""
    found = Counter(precision for kind, precision, _ in graph if kind in PRODUCTS)
    return dict(sorted(found.items()))


def nodes(compiled) -> list[tuple[str, str, str]]:
    """(kind, type it runs in, names of the layers it stands for) of every node of the compiled graph."""
    keys = ("layerType", "runtimePrecision", "originalLayersNames")
    about = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [tuple(item[key].value for key in keys) for item in about]


def inspect(path: Path, compiled) -> dict:
    """What the file holds (bytes of its constants by type) and what the compiled model runs and has been set to."""
    import openvino

    held: Counter = Counter()
    for node in openvino.Core().read_model(str(path)).get_ordered_ops():
        if node.get_type_name() == "Constant":
            held[node.get_element_type().get_type_name()] += node.get_byte_size()
    graph = nodes(compiled)
    by_type = products(graph)
    integer = sum(count for kind, count in by_type.items() if kind in INTEGERS)
    return {
        "initializer_bytes": dict(sorted(held.items())),
        "integer_products": integer,
        "float_products": sum(by_type.values()) - integer,
        # Softmax inside a larger node: the plugin has made one kernel of the attention block.
        "fused_attention": sum(kind != "Softmax" and "softmax" in names.lower() for kind, _, names in graph),
        "properties": {name: text(compiled.get_property(name)) for name in PROPERTIES},
    }
