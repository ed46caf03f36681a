"""The classifiers of the HTTP service: further training on a task's labels, then static int8 in ONNX."""

from compress.engines import ort
from compress.engines.mpnet import with_own_bias
from compress.engines.pytorch import load_model
from compress.methods.engine_files import (
    CALIBRATION_SENTENCES,
    check_integers,
    copying,
    empty_folder,
)
from compress.methods.made import Context, Made, made
from compress.methods.onnx_files import export_onnx, quantize_onnx_static
from compress.methods.teaching import classifier, fine_tune, sentences


def service(variant, context: Context) -> Made:
    """The parent, trained further on the task's labels, as an int8 ONNX file with fixed activation ranges."""
    seconds = None
    if variant.training is None:
        model = load_model(context.parent)
    else:
        model = classifier(context.parent, context.labels, context.seed)
        seconds = fine_tune(model, context.parent, variant.training, context)
        # Training may leave the forward pass under autocast: a new model with the same weights is exported.
        weights, model = model.state_dict(), with_own_bias(type(model)(model.config))
        model.load_state_dict(weights)
    work = empty_folder(context.work)
    plain, target = work / "plain.onnx", work / ort.FILE
    export_onnx(model.eval(), plain)
    quantize_onnx_static(plain, target, sentences(context, "train", CALIBRATION_SENTENCES), "minmax")
    facts = ort.inspect_onnx(target)
    check_integers(facts)
    return made(
        model,
        copying({target: target.name}),
        details=facts,
        train_seconds=seconds,
        backend="onnxruntime",
        runtime={"precision": ort.onnx_precision(facts)},
    )
