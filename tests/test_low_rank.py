"""Low-rank factors: the optimum, against NumPy; whole models of four kinds on disk, in int8 and in the engines."""

import copy

import numpy as np
import pytest
import torch
from compress.config.variants import LowRank
from compress.engines import ort, ov
from compress.engines.mpnet import with_own_bias
from compress.engines.pytorch import TorchPredictor, load_model, torch_precision
from compress.errors import UserError
from compress.methods.gptq import layer_hessians
from compress.methods.integers import int8_weights, quantize_weight
from compress.methods.low_rank import factor_encoder, factors, rank_of
from compress.methods.networks import encoder_matrices
from compress.methods.onnx_files import export_onnx, fuse, quantize_onnx_dynamic
from compress.storage.packed import INT8, write_packed
from conftest import SAFE_BITS
from openvino import convert_model, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "bert": SIZES,
    "mpnet": SIZES | {"max_position_embeddings": 40},
    "roberta": SIZES | {"max_position_embeddings": 40},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
}
MASK = (np.arange(11) < np.array([[11], [4], [7], [2]])).astype(np.int64)
INPUTS = np.random.default_rng(0).integers(5, 90, MASK.shape) * MASK, MASK
IDS = [row[mask.astype(bool)].tolist() for row, mask in zip(*INPUTS, strict=True)] * 4


def network(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=90, initializer_range=0.2, pad_token_id=0, **KINDS[kind])
    return with_own_bias(AutoModelForSequenceClassification.from_config(config)).eval()


@pytest.fixture(params=KINDS)
def model(request):
    return network(request.param)


def factored(model, kept=0.5, ids=IDS):
    model = copy.deepcopy(model)
    factor_encoder(model, kept, ids)
    return model


def logits(model):
    return TorchPredictor(model, "cpu", "fp32", 1)(*INPUTS)


def correlated_inputs():
    chance = torch.Generator().manual_seed(1)
    W = torch.randn(12, 24, generator=chance, dtype=torch.float64)
    X = torch.randn(24, 9, generator=chance, dtype=torch.float64) @ torch.randn(9, 200, generator=chance).double()
    return W, X + 0.1 * torch.randn(24, 200, generator=chance)


def truncated(M, rank):
    P, s, Qt = np.linalg.svd(M, full_matrices=False)
    return P[:, :rank] * s[:rank] @ Qt[:rank]


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_factors_are_the_optimum_of_numpys_svd_and_beat_the_plain_one(rank):
    W, X = correlated_inputs()
    L = np.linalg.cholesky((X @ X.T).numpy())
    best = truncated(W.numpy() @ L, rank) @ np.linalg.inv(L)
    weighted, plain = (torch.matmul(*factors(W, H, rank)) for H in (2 * X @ X.T, None))
    np.testing.assert_allclose(weighted, best, atol=1e-8)
    np.testing.assert_allclose(plain, truncated(W.numpy(), rank), atol=1e-8)
    errors = [torch.dist(M @ X, W @ X) for M in (weighted, plain)]
    assert errors[0] < 0.9 * errors[1]
    assert torch.dist(plain, W) < torch.dist(weighted, W)


def test_factors_need_no_inverse_of_the_inputs_and_lose_nothing_at_full_rank():
    W, X = correlated_inputs()
    X[:, :] = X[:, :1]  # a second moment of rank 1
    U, V = factors(W, X @ X.T, 1)
    torch.testing.assert_close(U @ V @ X, W @ X)
    for M, rank in ((W, 12), (W.T, 12)):
        U, V = factors(M, None, rank)
        torch.testing.assert_close(U @ V, M)
        assert (U.shape, V.shape) == ((len(M), rank), (rank, M.shape[1]))


def test_the_rank_keeps_a_share_of_the_parameters_and_is_at_least_one():
    for rows, columns, kept in ((384, 1536, 0.5), (32, 48, 0.7), (768, 768, 1.0)):
        rank = rank_of(rows, columns, kept)
        assert rank * (rows + columns) <= kept * rows * columns < (rank + 1) * (rows + columns)
    assert rank_of(384, 384, 0.5) == 96
    assert rank_of(10, 10, 0.01) == 1


def test_only_the_encoders_matrices_are_factored(model):
    small = factored(model)
    assert set(small.config.ranks) == {name.removesuffix(".weight") for name in encoder_matrices(model)}
    assert len(small.config.ranks) == 2 * 6
    before, after = (sum(w.numel() for w in encoder_matrices(m).values()) for m in (model, small))
    assert 0.45 * before < after <= 0.5 * before
    removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
    assert removed == before - after
    with pytest.raises(UserError, match="factors already"):
        factor_encoder(small, 0.5)


def test_at_full_rank_the_outputs_are_unchanged(model, monkeypatch):
    monkeypatch.setattr("compress.methods.low_rank.rank_of", lambda rows, columns, kept: min(rows, columns))
    for ids in (None, IDS):
        np.testing.assert_allclose(logits(factored(model, ids=ids)), logits(model), atol=1e-4)


def test_each_matrix_has_the_least_error_on_its_inputs_in_the_parent():
    model = network("bert")
    by_inputs, plain = factored(model), factored(model, ids=None)
    for module, H in layer_hessians(model, model.bert.encoder, IDS).items():
        name = next(name for name, other in model.named_modules() if other is module)
        errors = []
        for small in (by_inputs, plain):
            first, second = small.get_submodule(name)
            E = (second.weight @ first.weight - module.weight).double()
            errors.append((E @ H.double() * E).sum())  # |E X|^2
        least = torch.linalg.eigvalsh(module.weight.double() @ H.double() @ module.weight.double().T)
        torch.testing.assert_close(errors[0], least[: -first.out_features].sum(), rtol=1e-3, atol=1e-4)
        assert errors[0] < errors[1]


def test_a_folder_is_complete_and_reloads_equal_also_in_int8_and_in_16_bits(model, tmp_path):
    small = factored(model)
    folders = [tmp_path / name for name in ("packed", "plain", "int8", "bf16")]
    for folder in folders[:3]:
        folder.mkdir()
    write_packed(small, folders[0], {})
    small.save_pretrained(folders[1])
    for folder in folders[:2]:
        loaded = load_model(folder)
        assert torch_precision(loaded) == "fp32"
        np.testing.assert_array_equal(logits(loaded), logits(small))
    with pytest.raises(OSError, match=r"model\.safetensors"):  # not a model with random matrices
        AutoModelForSequenceClassification.from_pretrained(folders[0])
    integers = {name: quantize_weight(small.get_parameter(name), SAFE_BITS) for name in int8_weights(small)}
    write_packed(small, folders[2], integers, execution=INT8)
    assert torch_precision(load_model(folders[2])) == "int8"
    np.testing.assert_allclose(logits(load_model(folders[2], dense=True)), logits(small), atol=0.2)
    np.testing.assert_allclose(logits(load_model(folders[2])), logits(small), atol=0.3)
    load_model(folders[0]).bfloat16().save_pretrained(folders[3])
    assert torch_precision(load_model(folders[3])) == "bf16"
    np.testing.assert_allclose(logits(load_model(folders[3])), logits(small), atol=0.1)


def test_weights_that_do_not_fit_the_ranks_are_named(tmp_path):
    small = factored(network("bert"))
    small.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("query.0.weight"))
    for wrong in ({**tensors, name: tensors[name][1:]}, {key: t for key, t in tensors.items() if key != name}):
        save_file(wrong, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"(?s)model\.safetensors: missing, damaged, or not .*{name}"):
            load_model(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing"):
        load_model(tmp_path)


def test_exports_equal_torch_and_int8_comes_close(model, tmp_path):
    small = factored(model)
    expected = logits(small)
    plain, fused, integer = (tmp_path / f"{name}.onnx" for name in ("plain", "fused", "int8"))
    export_onnx(small, plain)
    fuse(plain, fused)
    quantize_onnx_dynamic(fused, integer, reduced_range=SAFE_BITS < 8)
    save_model(convert_model(plain), tmp_path / "model.xml", compress_to_fp16=False)
    compiled = ov.compile_model(tmp_path / "model.xml", 1, {"INFERENCE_PRECISION_HINT": "f32"})
    exact = [ort.OrtPredictor(ort.open_session(file, 1), "fp32", 1) for file in (plain, fused)]
    for predictor in (*exact, ov.OpenVINOPredictor(compiled)):
        np.testing.assert_allclose(predictor(*INPUTS), expected, atol=1e-4)
    assert ort.inspect_onnx(integer)["integer_products"]
    rounded = ort.OrtPredictor(ort.open_session(integer, 1), "int8", 1)(*INPUTS)
    np.testing.assert_allclose(rounded, expected, atol=0.3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kept": 0}, "kept"),
        ({"kept": 1.5}, "kept"),
        ({"kept": 0.5, "calibration_sentences": 0}, "calibration_sentences"),
    ],
)
def test_wrong_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        LowRank.model_validate({"name": "x", "parent": "p", "method": "low-rank"} | options)
