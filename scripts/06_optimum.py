"""HW6: Hugging Face Optimum beside the engines' own tools, PyTorch's own fast paths, and the champions.

Reads build/<profile>/data/ and the models of the stages before it; writes models/, predictions/ and records/ beside
them. A killed run goes on where it stopped; what is finished and unchanged is kept.
Example: python scripts/06_optimum.py --profile minilm --only champion-balanced
"""

import argparse

from compress.cli import main_guard, stage_parser


def optimum_onnx(variant, context):
    """The parent exported by optimum-onnx, then optimized at a level, or quantized, by its classes."""
    from compress.engines import ort
    from compress.engines.predictor import OrtPredictor
    from compress.engines.pytorch import load_model
    from compress.methods.export import check_integers, check_parity, compared, fresh
    from optimum.onnxruntime import AutoOptimizationConfig, ORTModelForSequenceClassification, ORTOptimizer

    quietly()
    exported = ORTModelForSequenceClassification.from_pretrained(context.parent, export=True)
    folder = fresh(context.work)
    if variant.level:
        config = getattr(AutoOptimizationConfig, variant.level)()
        ORTOptimizer.from_pretrained(exported).optimize(save_dir=folder, optimization_config=config)
    else:
        quantize_onnx(exported, folder, context, static=variant.quantization == "static")
    (file,) = folder.glob("*.onnx")
    facts = ort.inspect(file)
    precision = ort.precision_of(facts)
    predictor = OrtPredictor(ort.session(file, context.threads), precision, context.threads)
    facts |= compared(context, load_model(context.parent, dense=True), predictor)
    if variant.quantization:
        check_integers(facts)
    elif variant.level in ("O1", "O2"):  # O3 approximates GELU, and O4 stores 16 bits, too
        check_parity(facts)
    runtime = {"precision": precision}
    return packaged(context, {file: ort.FILE}, facts, backend="onnxruntime", runtime=runtime)


def quantize_onnx(exported, folder, context, static):
    """Writes the int8 file for the instructions that this CPU has."""
    import torch
    from optimum.onnxruntime import AutoCalibrationConfig, AutoQuantizationConfig, ORTQuantizer

    able = torch.cpu.get_capabilities()
    kinds = {"avx512_vnni": "avx512_vnni", "avx_vnni": "avx512_vnni", "avx512_f": "avx512", "avx2": "avx2"}
    name = next((kind for flag, kind in kinds.items() if able.get(flag)), "arm64")
    operators = ["MatMul", "Gemm", "Gather"] if static else None
    config = getattr(AutoQuantizationConfig, name)(is_static=static, per_channel=True, operators_to_quantize=operators)
    quantizer = ORTQuantizer.from_pretrained(exported)
    ranges = None
    if static:
        rows = calibration(context, one_length=True)
        method = AutoCalibrationConfig.minmax(rows)
        ranges = quantizer.fit(rows, method, folder / "augmented.onnx", config.operators_to_quantize)
        (folder / "augmented.onnx").unlink()
    quantizer.quantize(config, folder, calibration_tensors_range=ranges)


def optimum_intel(variant, context):
    """The parent exported by optimum-intel and compressed by its OVQuantizer."""
    from compress.engines import ov
    from compress.engines.predictor import OpenVINOPredictor
    from compress.engines.pytorch import load_model
    from compress.methods.export import CALIBRATION_SENTENCES, check_integers, compared, fresh
    from optimum.intel import (
        OVConfig,
        OVModelForSequenceClassification,
        OVQuantizationConfig,
        OVQuantizer,
        OVWeightQuantizationConfig,
    )

    quietly()
    exported = OVModelForSequenceClassification.from_pretrained(context.parent, export=True, compile=False)
    configs = {
        "int8": lambda: OVQuantizationConfig(num_samples=CALIBRATION_SENTENCES),
        "int8-weights": lambda: OVWeightQuantizationConfig(bits=8, sym=True),
        "int4-weights": lambda: OVWeightQuantizationConfig(bits=4, sym=True, group_size=64, ratio=1.0, all_layers=True),
    }
    folder = fresh(context.work)
    rows = calibration(context) if variant.quantization == "int8" else None
    config = OVConfig(quantization_config=configs[variant.quantization]())
    OVQuantizer.from_pretrained(exported).quantize(calibration_dataset=rows, save_directory=folder, ov_config=config)
    (file,) = folder.glob("*.xml")
    runtime = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.compile_model(file, context.threads, runtime)
    facts = ov.inspect(file, compiled)
    facts |= compared(context, load_model(context.parent, dense=True), OpenVINOPredictor(compiled))
    if variant.quantization == "int8":
        check_integers(facts)
    files = {file: ov.FILE, file.with_suffix(".bin"): "model.bin"}
    return packaged(context, files, facts, backend="openvino", runtime=runtime)


def calibration(context, one_length=False):
    """Training sentences as a Dataset of the inputs that the exported files have."""
    from compress.engines import ort
    from compress.methods.export import CALIBRATION_SENTENCES, sentences
    from datasets import Dataset

    if one_length:
        ids = ort.of_one_length(sentences(context, "train"), CALIBRATION_SENTENCES)
    else:
        ids = sentences(context, "train", CALIBRATION_SENTENCES)
    ones, zeros = ([[value] * len(row) for row in ids] for value in (1, 0))
    return Dataset.from_dict({"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros})


def quietly():
    """Optimum and the libraries under it write a page of information for every file."""
    import logging

    for name in ("optimum", "nncf", "openvino", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def packaged(context, files, facts, **about):
    """The Made of finished files; their parameters are the parent's."""
    from compress.methods.export import copying
    from compress.stage import Made
    from compress.storage.artifact import read_artifact

    parent = read_artifact(context.parent, verify=False)
    return Made(copying(files), parent.parameters, parent.nonzero_parameters, details=facts, **about)


def torch_runtime(variant, context):
    """The parent for PyTorch itself: 16-bit or int8 arithmetic, or compiled."""
    import shutil

    from compress.engines.pytorch import INT8, load_model, write_packed
    from compress.errors import Skip
    from compress.methods.quantize import quantized
    from compress.stage import made

    if variant.compile and not any(map(shutil.which, ("g++", "clang++"))):
        raise Skip("torch.compile needs a C++ compiler (g++ or clang++), and there is none")
    model = load_model(context.parent)
    runtime = {"compile": True} if variant.compile else {}
    if variant.precision == "int8":
        encoded = quantized(model)
        return made(model, lambda folder: write_packed(model, folder, encoded, execution=INT8), runtime=runtime)
    if variant.precision == "bf16":
        model = model.bfloat16()  # the config then asks the ordinary loader for bf16, too
    return made(model, model.save_pretrained, runtime=runtime)


def champion(variant, context):
    """A copy of the variant that wins by compress.champions' rule; it is measured anew under its new name.

    A further seed's is a copy of what the first seed chose.
    """
    import numpy as np
    from compress.config.profile import run_name
    from compress.methods.export import copying
    from compress.results.selection import candidates, choose, first_choice, measured_records
    from compress.stage import Made
    from compress.storage.artifact import TOKENIZER_FILES, read_artifact

    if context.seed == 0:
        records = measured_records(context.profile, variant.name, context.device)
        labels = np.array(context.splits["validation"]["label"])
        facts = choose(candidates(context.profile, records), labels, variant.goal, variant.tolerance)
    else:
        facts = {"chosen": first_choice(context.profile, variant.name, context.device)}
    folder = context.profile.model(run_name(facts["chosen"], context.seed, context.device))
    artifact = read_artifact(folder)
    names = [name for name in artifact.files if name not in TOKENIZER_FILES]
    return Made(
        copying({folder / name: name for name in names}),
        artifact.parameters,
        artifact.nonzero_parameters,
        backend=artifact.backend,
        details=facts,
        runtime=artifact.runtime,
        tokenizer=folder,
    )


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    return run_stage(__file__, MAKERS, args)


MAKERS = {"optimum-onnx": optimum_onnx, "optimum-intel": optimum_intel, "torch": torch_runtime, "champion": champion}

if __name__ == "__main__":
    main_guard(main, stage_parser(__doc__))
