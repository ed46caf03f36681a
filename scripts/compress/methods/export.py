"""Inference engines: a checkpoint as an ONNX file for ONNX Runtime, or as an OpenVINO model."""

from collections import Counter
from pathlib import Path

from compress.engines import ort, ov
from compress.engines.pytorch import load_model
from compress.methods.engine_files import (
    check_integers,
    check_parity,
    copying,
    empty_folder,
    onnx_facts,
    openvino_facts,
)
from compress.methods.made import Context, Made, made
from compress.methods.onnx_files import export_onnx, fuse, quantize_onnx_dynamic, quantize_onnx_static
from compress.methods.onnx_int4 import quantize_onnx_int4
from compress.methods.openvino_files import compress_weights, post_training
from compress.methods.teaching import sentences
from openvino import convert_model, save_model
from torch import nn


def onnx(variant, context: Context) -> Made:
    """The parent as model.onnx, fused and quantized by the variant's options."""
    model, plain = exported(context)
    target = context.work / ort.FILE
    if variant.precision == "int8-static":
        ids = calibration_ids(variant, context)
        quantize_onnx_static(plain, target, ids, variant.calibration, variant.reduced_range)
    elif variant.precision == "int4":
        quantize_onnx_int4(plain, target)
    else:
        source = plain
        if variant.fused:
            source = context.work / "fused.onnx"
            fuse(plain, source, half=variant.precision == "fp16")
        if variant.precision == "int8-dynamic":
            quantize_onnx_dynamic(source, target, variant.reduced_range)
        else:
            source.rename(target)
    facts, precision = onnx_facts(context, model, target)
    if variant.precision == "fp32":
        check_parity(facts)
    elif variant.precision.startswith("int8"):
        check_integers(facts)
    runtime = {"precision": precision}
    return made(model, copying({target: target.name}), details=facts, backend="onnxruntime", runtime=runtime)


def calibration_ids(variant, context: Context) -> list[list[int]]:
    """The training sentences on which activation ranges are measured: for percentiles, all of one length."""
    if variant.calibration == "minmax":
        return sentences(context, "train", variant.calibration_sentences)
    ids = sentences(context, "train")
    length = Counter(map(len, ids)).most_common(1)[0][0]
    return [row for row in ids if len(row) == length][: variant.calibration_sentences]


def openvino(variant, context: Context) -> Made:
    """The parent as model.xml and model.bin, compressed by NNCF by the variant's options."""
    model, plain = exported(context)
    converted = compressed(convert_model(plain), variant, context)
    target = context.work / ov.FILE
    save_model(converted, target, compress_to_fp16=variant.compression == "fp16")
    runtime = {"PERFORMANCE_HINT": variant.hint}
    if variant.execution == "f32":
        runtime["INFERENCE_PRECISION_HINT"] = "f32"
    facts, precision = openvino_facts(context, model, target, runtime)
    if variant.compression is None and precision == "fp32":
        check_parity(facts)
    elif computes_integers(variant):
        check_integers(facts)
    files = {file: file.name for file in (target, target.with_suffix(".bin"))}
    return made(model, copying(files), details=facts, backend="openvino", runtime=runtime)


def computes_integers(variant) -> bool:
    """Whether activations are quantized, too, so that matrix products run on integers."""
    return variant.compression in ("int8", "int8-smooth")


def compressed(model, variant, context: Context):
    """The OpenVINO model with weights, and activations for int8, in fewer bits."""
    kind = variant.compression or ""
    if kind.endswith("-weights"):
        return compress_weights(model, kind.removesuffix("-weights"))
    if not computes_integers(variant):
        return model
    calibration = sentences(context, "train", variant.calibration_sentences)
    return post_training(model, calibration, smooth=kind == "int8-smooth")


def exported(context: Context) -> tuple[nn.Module, Path]:
    """(the parent as a float torch model, its plain ONNX file in the emptied working folder)."""
    model = load_model(context.parent, dense=True)
    plain = empty_folder(context.work) / "plain.onnx"
    export_onnx(model, plain)
    return model, plain
