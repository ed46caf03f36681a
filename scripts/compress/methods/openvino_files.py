"""OpenVINO models compressed by NNCF: int8 weights and activations, or weights only.

nncf is imported inside the functions: it takes two seconds and changes torch, and only compressed models need it.
"""

from collections.abc import Sequence

from compress.engines.predictor import feeds


def post_training(model, ids: Sequence[Sequence[int]], smooth: bool):
    """int8 weights and activations by NNCF's preset for transformers, calibrated on the sentences `ids`.

    smooth=True moves the range of outliers from activations into weights (SmoothQuant: Xiao et al., ICML 2023).
    """
    import nncf  # noqa: PLC0415

    smoothing = nncf.AdvancedSmoothQuantParameters(matmul=0.95 if smooth else -1, convolution=-1)
    return nncf.quantize(
        model,
        nncf.Dataset(list(feeds(ids))),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(ids),
        preset=nncf.QuantizationPreset.MIXED,
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
    )


def compress_weights(model, mode: str):
    """Weights as 8-bit integers (int8), 4-bit integers in groups of 64 (int4), or 16 shared values (codebook).

    In 4 bits the embedding tables and the last layer are included. When the file runs, OpenVINO rounds the inputs of
    products with integer weights to 8 bits, a scale per 32 inputs (its DYNAMIC_QUANTIZATION_GROUP_SIZE).
    """
    import nncf  # noqa: PLC0415

    if mode == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    modes = {"int4": nncf.CompressWeightsMode.INT4_SYM, "codebook": nncf.CompressWeightsMode.CB4}
    return nncf.compress_weights(model, mode=modes[mode], ratio=1.0, group_size=64, all_layers=True)
