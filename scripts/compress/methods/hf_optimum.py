"""Hugging Face Optimum's exporters and quantizers, and PyTorch's own fast paths.

optimum.onnxruntime and optimum.intel are imported inside their methods: each takes seconds, and a build needs one.
"""

import logging
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from compress.engines import ort, ov
from compress.engines.pytorch import load_model
from compress.errors import Skip
from compress.methods.engine_files import (
    CALIBRATION_SENTENCES,
    check_integers,
    check_parity,
    copying,
    empty_folder,
    onnx_facts,
    openvino_facts,
)
from compress.methods.integers import int8_weights
from compress.methods.made import Context, Made, made
from compress.methods.quantize import packed_int8
from compress.methods.teaching import sentences
from compress.paths import ROOT
from compress.storage.artifact import read_artifact
from datasets import Dataset
from transformers import AutoConfig

# The instruction sets of AutoQuantizationConfig by the CPU's capability, the best first.
INSTRUCTIONS = {"avx512_vnni": "avx512_vnni", "avx_vnni": "avx512_vnni", "avx512_f": "avx512", "avx2": "avx2"}


def optimum_onnx(variant, context: Context) -> Made:
    """The parent exported by optimum-onnx, then optimized at a level, or quantized, by its classes."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForSequenceClassification, ORTOptimizer  # noqa: PLC0415

    silence_libraries()
    check_exportable(context)
    exported = ORTModelForSequenceClassification.from_pretrained(context.parent, export=True)
    folder = empty_folder(context.work)
    if variant.level:
        config = getattr(AutoOptimizationConfig, variant.level)()
        ORTOptimizer.from_pretrained(exported).optimize(save_dir=folder, optimization_config=config)
    else:
        optimum_quantize(exported, folder, context, static=variant.quantization == "static")
    (file,) = folder.glob("*.onnx")
    facts, precision = onnx_facts(context, load_model(context.parent, dense=True), file)
    if variant.quantization:
        check_integers(facts)
    elif variant.level in ("O1", "O2"):  # O3 approximates GELU, and O4 also stores 16 bits
        check_parity(facts)
    return packaged(context, {file: ort.FILE}, facts, backend="onnxruntime", runtime={"precision": precision})


def optimum_quantize(exported, folder: Path, context: Context, static: bool) -> None:
    """Writes the int8 file for the instruction set of this CPU."""
    from optimum.onnxruntime import AutoCalibrationConfig, AutoQuantizationConfig, ORTQuantizer  # noqa: PLC0415

    able = torch.cpu.get_capabilities()
    name = next((kind for flag, kind in INSTRUCTIONS.items() if able.get(flag)), "arm64")
    operators = ["MatMul", "Gemm", "Gather"] if static else None
    config = getattr(AutoQuantizationConfig, name)(is_static=static, per_channel=True, operators_to_quantize=operators)
    quantizer = ORTQuantizer.from_pretrained(exported)
    ranges = None
    if static:
        rows = calibration_data(sentences(context, "train", CALIBRATION_SENTENCES), exported.input_names)
        method = AutoCalibrationConfig.minmax(rows)
        ranges = quantizer.fit(rows, method, folder / "augmented.onnx", config.operators_to_quantize)
        (folder / "augmented.onnx").unlink()
    quantizer.quantize(config, folder, calibration_tensors_range=ranges)


def optimum_intel(variant, context: Context) -> Made:
    """The parent exported by optimum-intel and compressed by its OVQuantizer."""
    from optimum.intel import (  # noqa: PLC0415
        OVConfig,
        OVModelForSequenceClassification,
        OVQuantizationConfig,
        OVQuantizer,
        OVWeightQuantizationConfig,
    )

    silence_libraries()
    check_exportable(context)
    exported = OVModelForSequenceClassification.from_pretrained(context.parent, export=True, compile=False)
    configs = {
        "int8": lambda: OVQuantizationConfig(num_samples=CALIBRATION_SENTENCES),
        "int8-weights": lambda: OVWeightQuantizationConfig(bits=8, sym=True),
        "int4-weights": lambda: OVWeightQuantizationConfig(bits=4, sym=True, group_size=64, ratio=1.0, all_layers=True),
    }
    folder = empty_folder(context.work)
    integers = variant.quantization == "int8"
    ids = sentences(context, "train", CALIBRATION_SENTENCES) if integers else []
    rows = calibration_data(ids, exported.input_names) if integers else None
    config = OVConfig(quantization_config=configs[variant.quantization]())
    OVQuantizer.from_pretrained(exported).quantize(calibration_dataset=rows, save_directory=folder, ov_config=config)
    (file,) = folder.glob("*.xml")
    runtime = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    facts, _ = openvino_facts(context, load_model(context.parent, dense=True), file, runtime)
    if integers:
        check_integers(facts)
    files = {file: ov.FILE, file.with_suffix(".bin"): "model.bin"}
    return packaged(context, files, facts, backend="openvino", runtime=runtime)


def calibration_data(ids: list[list[int]], names: Iterable[str]) -> Dataset:
    """Sentences as a Dataset with the inputs of the exported file: some networks have no token types."""
    ones, zeros = ([[value] * len(row) for row in ids] for value in (1, 0))
    columns = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
    return Dataset.from_dict({name: columns[name] for name in columns if name in names})


def check_exportable(context: Context) -> None:
    """Raises Skip for a network that Optimum loads wrongly: it does not know compress.engines.mpnet."""
    config = AutoConfig.from_pretrained(context.parent)
    if config.model_type == "mpnet" and config.pruned_heads:
        raise Skip("Optimum can't load an MPNet with fewer heads in some layers")


def silence_libraries() -> None:
    """Optimum and the libraries below it log a page of information for every file."""
    for name in ("optimum", "nncf", "openvino", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def packaged(context: Context, files: dict[Path, str], facts: dict, **about) -> Made:
    """The Made of finished files, with the parent's numbers of parameters."""
    parent = read_artifact(context.parent, verify=False)
    return Made(copying(files), parent.parameters, parent.nonzero_parameters, details=facts, **about)


def torch_runtime(variant, context: Context) -> Made:
    """The parent for PyTorch itself: 16-bit or int8 arithmetic, or compiled."""
    if variant.compile and not any(map(shutil.which, ("g++", "clang++"))):
        raise Skip("torch.compile needs a C++ compiler (g++ or clang++), and there is none")
    if variant.compile and " " in f"{ROOT}{sys.prefix}":
        raise Skip("torch.compile needs paths without spaces, and that of this clone or its environment has one")
    model = load_model(context.parent)
    runtime = {"compile": True} if variant.compile else {}
    if variant.precision == "int8":
        return packed_int8(model, int8_weights(model), runtime=runtime)
    if variant.precision == "bf16":
        model = model.bfloat16()  # the config then makes the ordinary loader use bf16, too
    return made(model, model.save_pretrained, runtime=runtime)
