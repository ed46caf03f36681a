"""Weight-only quantization of the encoder's matrices: rounded to the nearest, or by GPTQ on the same grid.

Frantar et al., GPTQ (2022): after each column is rounded, the columns still to come make up for its error. The
paper's lazy batches of columns are left out: they save time for billions of weights and change no result.
"""

import torch
from compress.engines.predictor import predict
from compress.engines.pytorch import TorchPredictor, load_model
from compress.methods.integers import int8_weights, quantize_weight
from compress.methods.made import Context, Made, made
from compress.methods.networks import encoder_layers, encoder_matrices
from compress.methods.teaching import sentences
from compress.storage.packed import Integer, write_packed
from torch import nn

DAMPING = 0.01  # of the Hessian's mean diagonal, added to its diagonal (the paper's section 4, step 3)


def weight_only(variant, context: Context) -> Made:
    """The encoder's matrices in few bits, all others in 8; integers on disk, floats once loaded.

    Embedding tables would gain nothing by GPTQ: their inputs are one-hot, so H is diagonal, and no row can make up for
    the error of another.
    """
    model = load_model(context.parent)
    encoded = int8_weights(model)
    if variant.rounding == "gptq":
        ids = sentences(context, "train", variant.calibration_sentences)
        encoded |= gptq_encoder(model, ids, variant.bits)
    else:
        encoded |= {name: quantize_weight(w, variant.bits) for name, w in encoder_matrices(model).items()}
    for name, integer in encoded.items():  # so that zeros are counted as they are stored
        model.get_parameter(name).data = torch.from_numpy(integer.dense())
    return made(model, lambda folder: write_packed(model, folder, encoded))


def gptq_encoder(model: nn.Module, ids: list[list[int]], bits: int) -> dict[str, Integer]:
    """GPTQ of every Linear in the encoder's layers, in place; returns the integers by parameter name.

    Layer by layer: the inputs of a layer come from the layers before it as they were rounded (the paper's section 5).
    ids: token ids of the calibration sentences.
    """
    names = {module: name for name, module in model.named_modules()}
    encoded = {}
    for layer in encoder_layers(model):
        for module, H in layer_hessians(model, layer, ids).items():
            W, scale = module.weight.detach(), torch.from_numpy(quantize_weight(module.weight, bits).scale)
            integer = encoded[f"{names[module]}.weight"] = gptq(W, H, scale, bits)
            module.weight.data = torch.from_numpy(integer.dense())
    return encoded


def layer_hessians(model: nn.Module, layer: nn.Module, ids: list[list[int]]) -> dict[nn.Linear, torch.Tensor]:
    """H = 2 X X^T (float [columns, columns]) of each Linear in the layer, X its inputs [columns, tokens].

    The sentences run one by one, so that no padding is calibrated.
    """
    hessians = {m: torch.zeros(m.in_features, m.in_features) for m in layer.modules() if isinstance(m, nn.Linear)}

    def add(module, inputs):
        x = inputs[0].flatten(0, -2)  # [tokens, columns]
        hessians[module].addmm_(x.T, x, alpha=2)

    hooks = [module.register_forward_pre_hook(add) for module in hessians]
    predict(TorchPredictor(model, "cpu", "fp32", torch.get_num_threads()), ids)
    for hook in hooks:
        hook.remove()
    return hessians


def gptq(W: torch.Tensor, H: torch.Tensor, scale: torch.Tensor, bits: int) -> Integer:
    """Q, the matrix W as integers times scale, with a small error ||W X - Q X||: the paper's algorithm 1.

    W: float [rows, columns]; H: float [columns, columns], as in layer_hessians() and not all zero; scale: float32
    [rows], the grid of each row, fixed from the start.
    """
    top = (1 << (bits - 1)) - 1
    W, H, codes = W.double().clone(), H.double(), torch.empty(W.shape, dtype=torch.int8)
    H = H + DAMPING * H.diagonal().mean() * torch.eye(len(H))
    # Row j of this factor is all that the algorithm needs of H's inverse once the columns before j are rounded.
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    for j in range(W.shape[1]):
        q = (W[:, j] / scale).round().clamp(-top, top)
        E = (W[:, j] - q * scale) / U[j, j]
        W[:, j + 1 :].addr_(E, U[j, j + 1 :], alpha=-1)
        codes[:, j] = q
    return Integer(codes.numpy(), scale.numpy(), bits)
