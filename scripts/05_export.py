"""HW4, inference engines: every useful checkpoint as ONNX for ONNX Runtime, and in OpenVINO's own format.

Reads build/<profile>/data/ and the models of the stages before it; writes models/, predictions/ and records/ beside
them. A killed run goes on where it stopped; what is finished and unchanged is kept.
Example: python scripts/05_export.py --profile minilm --only finetuned-ort-int8
"""

import argparse

from compress.cli import main_guard, stage_parser


def onnx(variant, context):
    """The parent as model.onnx, fused and quantized as the variant says."""
    from compress.engines import ort
    from compress.engines.predictor import OrtPredictor
    from compress.methods.export import check_integers, check_parity, compared, copying, sentences
    from compress.stage import made

    model, plain = exported(context)
    target = context.work / ort.FILE
    if variant.precision == "int8-static":
        ids = ort.of_one_length(sentences(context, "train"), variant.calibration_sentences)
        ort.quantize_static(plain, target, ids, variant.calibration)
    else:
        source = plain
        if variant.fused:
            source = context.work / "fused.onnx"
            ort.fuse(plain, source, half=variant.precision == "fp16")
        if variant.precision == "int8-dynamic":
            ort.quantize_dynamic(source, target)
        else:
            source.rename(target)
    facts = ort.inspect(target)
    precision = ort.precision_of(facts)
    facts |= compared(context, model, OrtPredictor(ort.session(target, context.threads), precision, context.threads))
    if variant.precision == "fp32":
        check_parity(facts)
    elif variant.precision.startswith("int8"):
        check_integers(facts)
    runtime = {"precision": precision}
    return made(model, copying({target: target.name}), details=facts, backend="onnxruntime", runtime=runtime)


def openvino(variant, context):
    """The parent as model.xml and model.bin, compressed by NNCF as the variant says."""
    import numpy as np
    import openvino
    from compress.engines import ov
    from compress.engines.predictor import OpenVINOPredictor
    from compress.methods.export import check_integers, check_parity, compared, copying, sentences
    from compress.metrics import quality
    from compress.stage import made

    model, plain = exported(context)
    converted = openvino.convert_model(plain)
    kind = variant.compression or ""
    weights_only = kind.endswith("-weights")
    integers = kind.startswith("int8") and not weights_only
    calibration = sentences(context, "train", variant.calibration_sentences) if integers else []
    if kind == "int8-accuracy":
        labels = np.array(context.splits["validation"]["label"])
        converted = ov.with_accuracy_control(
            converted,
            calibration,
            sentences(context, "validation"),
            score=lambda logits: quality(logits, labels)["f1"],
            most=variant.tolerance / 100,
        )
    elif weights_only:
        converted = ov.weights_only(converted, kind.removesuffix("-weights"))
    elif integers:
        converted = ov.post_training(converted, calibration, smooth=kind == "int8-smooth")
    target = context.work / ov.FILE
    openvino.save_model(converted, target, compress_to_fp16=kind == "fp16")
    runtime = {"PERFORMANCE_HINT": variant.hint}
    if variant.execution == "f32":
        runtime["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = ov.compile_model(target, context.threads, runtime)
    facts = ov.inspect(target, compiled)
    predictor = OpenVINOPredictor(compiled)
    facts |= compared(context, model, predictor)
    if not kind and predictor.precision == "fp32":
        check_parity(facts)
    elif integers:
        check_integers(facts)
    files = {file: file.name for file in (target, target.with_suffix(".bin"))}
    return made(model, copying(files), details=facts, backend="openvino", runtime=runtime)


def exported(context):
    """(the parent as a float torch model, its plain ONNX file in a new working folder)."""
    from compress.engines import ort
    from compress.engines.pytorch import load_model
    from compress.methods.export import fresh

    model = load_model(context.parent, dense=True)
    plain = fresh(context.work) / "plain.onnx"
    ort.export(model, plain)
    return model, plain


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    return run_stage(__file__, {"onnx": onnx, "openvino": openvino}, args)


if __name__ == "__main__":
    main_guard(main, stage_parser(__doc__))
