"""Weight clustering against scikit-learn and autograd; exact coding and storage, and damaged files."""

import itertools
import json
import time

import numpy as np
import pytest
import torch
from compress.engines.pytorch import load_model
from compress.errors import UserError
from compress.methods.cluster import Lookup, choose_sizes, start_clustering
from compress.methods.criteria import magnitude
from compress.methods.kmeans import cluster_weights, initial_centroids, kmeans, lloyd
from compress.methods.masks import global_masks
from compress.methods.networks import encoder_matrices, remove_parametrizations
from compress.storage import packed
from compress.storage.coding import (
    bits_for,
    decode_codes,
    decode_sparse,
    encode_codes,
    encode_sparse,
    entropy_bytes,
    pack_bits,
    unpack_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from transformers import BertConfig, BertForSequenceClassification

SHAPES = array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=12)


@st.composite
def coded(draw):
    """(codes uint8 of any shape, their bits 1..8), skewed often enough that Huffman coding wins."""
    bits = draw(st.integers(1, 8))
    top = draw(st.sampled_from([0, min(1, (1 << bits) - 1), (1 << bits) - 1]))
    codes = draw(arrays(np.uint8, draw(SHAPES), elements=st.integers(0, top)))
    repeats = draw(st.sampled_from([1, 40]))
    return np.repeat(codes, repeats, axis=0), bits


@given(coded())
def test_packed_codes_unpack_exactly_and_take_the_bits_they_need(case):
    codes, bits = case
    stream = pack_bits(codes, bits)
    assert stream.dtype == np.uint8
    assert stream.size == -(-codes.size * bits // 8)
    np.testing.assert_array_equal(unpack_bits(stream, bits, codes.size), codes.reshape(-1))
    with pytest.raises(ValueError, match="bytes"):
        unpack_bits(np.append(stream, np.uint8(0)), bits, codes.size)


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_code_that_does_not_fit_is_refused(bits):
    with pytest.raises(ValueError, match="to fit"):
        pack_bits(np.array([0, 1 << bits]), bits)


@given(coded())
def test_coded_codes_decode_exactly_and_never_exceed_packed_ones(case):
    codes, bits = case
    block = encode_codes(codes, bits)
    assert block.size <= 1 + pack_bits(codes, bits).size
    decoded = decode_codes(block, bits, codes.size)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, codes.reshape(-1))


@given(coded(), st.data())
def test_truncated_blocks_are_refused(case, data):
    block = encode_codes(*case)
    cut = block[: data.draw(st.integers(0, block.size - 1))]
    with pytest.raises(ValueError, match=r"empty|truncated|damaged|need"):
        decode_codes(cut, case[1], case[0].size)


@given(coded(), st.data())
def test_altered_blocks_are_refused_or_decode_to_valid_codes(case, data):
    codes, bits = case
    block = encode_codes(codes, bits).copy()
    block[data.draw(st.integers(0, block.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_codes(block, bits, codes.size)
    except ValueError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.shape == (codes.size,)
    assert not decoded.size or decoded.max() < 1 << bits


@given(arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.0, 1.5, -2.0])))
def test_sparse_arrays_decode_exactly(values):
    mask, nonzeros = encode_sparse(values)
    out = decode_sparse(mask, nonzeros, values.shape)
    assert out.dtype == values.dtype
    assert out.tobytes() == values.tobytes()
    with pytest.raises(ValueError, match="mask keeps"):
        decode_sparse(mask, np.append(nonzeros, np.float32(1)), values.shape)


@pytest.mark.parametrize("k", [8, 16, 32])
def test_coded_gaussian_weights_take_their_entropy(k):
    weights = np.random.default_rng(k).normal(size=(384, 1024)).astype(np.float32)
    result = cluster_weights(weights, k)
    size = encode_codes(result.codes, bits_for(k)).nbytes + result.codebook.nbytes
    assert size <= 1.03 * (entropy_bytes(result.codes) + result.codebook.nbytes)


def inertia(weights, result) -> float:
    return float(np.square(weights.astype(np.float64) - result.dense()).sum())


@pytest.mark.parametrize("k", [4, 8, 16, 32])
@pytest.mark.parametrize("draw", ["normal", "laplace", "standard_t", "uniform", "trained"])
def test_inertia_is_at_most_scikit_learns(k, draw):
    rng = np.random.default_rng(k)
    if draw == "trained":  # a narrow bulk and two far bumps
        parts = [rng.normal(0, 0.03, 3000), rng.normal(0.4, 0.02, 60), rng.normal(-0.5, 0.02, 40)]
        weights = np.concatenate(parts)
    else:
        weights = rng.standard_t(5, 3000) if draw == "standard_t" else getattr(rng, draw)(size=3000)
    weights = weights.astype(np.float32)
    reference = KMeans(k, n_init=5, random_state=0).fit(weights[:, None].astype(np.float64)).inertia_
    assert inertia(weights, cluster_weights(weights, k)) <= 1.01 * reference


@pytest.mark.parametrize(("rate", "saved", "gap"), [(0.3, 0.005, 0.4), (1.0, 0.05, 0.34), (3.0, 0.05, 0.27)])
def test_a_price_per_bit_shortens_codes_for_little_error(rate, saved, gap):
    weights = np.random.default_rng(3).normal(size=20_000).astype(np.float32)
    plain, priced = cluster_weights(weights, 16), cluster_weights(weights, 16, rate=rate)
    bits = [8 * entropy_bytes(result.codes) / weights.size for result in (plain, priced)]
    errors = [inertia(weights, result) / weights.size for result in (plain, priced)]
    assert bits[1] < bits[0] - saved
    assert errors[0] < errors[1]
    price = rate * errors[0]
    assert errors[1] + price * bits[1] < errors[0] + price * bits[0]
    # A higher price brings the code closer to Shannon's bound for a gaussian, within a uniform quantizer's 0.25 bit.
    assert bits[1] < 0.5 * np.log2(1 / errors[1]) + gap


@settings(max_examples=30)
@given(
    draw=st.sampled_from(["laplace", "normal", "uniform", "standard_cauchy"]),
    size=st.integers(200, 20_000),
    k=st.integers(2, 64),
    seed=st.integers(0, 999),
)
def test_inertia_never_rises_and_every_weight_has_its_nearest_centroid(draw, size, k, seed):
    weights = getattr(np.random.default_rng(seed), draw)(size=size).astype(np.float32)
    x = np.sort(weights).astype(np.float64)
    sums, squares = np.concatenate([[0.0], x.cumsum()]), float(x @ x)
    # The last initialization leaves nearly every cluster empty.
    for start in [*initial_centroids(x, k), np.linspace(100, 101, k)]:
        cuts, inertias = lloyd(x, sums, squares, start)
        assert all(b <= a + 1e-9 * squares for a, b in itertools.pairwise(inertias))
        assert (np.diff(cuts) > 0).all()
    result = cluster_weights(weights, k)
    distances = np.abs(weights[:, None].astype(np.float64) - result.codebook)
    own = distances[np.arange(weights.size), result.codes]
    np.testing.assert_allclose(own, distances.min(1), atol=1e-6)


def test_well_separated_weights_are_clustered_exactly():
    centres = np.array([-5, -1, 0.5, 3, 40], np.float32)
    codes = np.random.default_rng(0).integers(0, 5, (60, 7))
    result = cluster_weights(centres[codes], 5)
    assert result.codes.dtype == np.uint8
    assert result.codebook.dtype == np.float32
    np.testing.assert_array_equal(result.codes, codes)
    np.testing.assert_array_equal(result.codebook, centres)


@given(
    arrays(np.float32, array_shapes(max_dims=2, max_side=20), elements=st.floats(-8, 8, width=16)),
    st.integers(1, 12),
)
def test_any_weights_get_k_ascending_centroids_or_an_error(weights, k):
    distinct = len(np.unique(weights))
    if distinct < k:
        with pytest.raises(ValueError, match=f"{k} distinct weights, there are {distinct}"):
            cluster_weights(weights, k)
        return
    result = cluster_weights(weights, k)
    assert result.codes.shape == weights.shape
    assert result.codebook.shape == (k,)
    assert (np.diff(result.codebook) >= 0).all()
    assert len(np.unique(result.codes)) == k  # no cluster is empty
    # Clusters are intervals: a greater weight never has a smaller code.
    order = np.argsort(weights, axis=None)
    assert (np.diff(result.codes.reshape(-1)[order].astype(int)) >= 0).all()


def test_bad_weights_and_bad_k_are_refused():
    weights = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        for i in (0, 500):
            changed = weights.copy()
            changed[i] = bad
            with pytest.raises(ValueError, match="NaN or infinite"):
                cluster_weights(changed, 8)
    with pytest.raises(ValueError, match="8 distinct weights, there are 1"):
        cluster_weights(np.full((40, 4), 0.5, np.float32), 8)
    with pytest.raises(ValueError, match="there are 0"):
        kmeans(np.empty(0, np.float32), 1)
    with pytest.raises(ValueError, match="too different magnitudes"):
        cluster_weights(np.array([1e30, 1, 2, 3], np.float32), 4)
    for k in (0, 257):
        with pytest.raises(ValueError, match=r"1\.\.256"):
            cluster_weights(weights, k)


def test_kept_zeros_have_a_centroid_of_their_own():
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    weights[np.abs(weights) < 1] = 0
    result = cluster_weights(weights, 8, keep_zeros=True)
    assert result.codebook.shape == (8,)
    assert (np.diff(result.codebook) > 0).all()
    np.testing.assert_array_equal(result.dense() == 0, weights == 0)
    assert inertia(weights, result) < inertia(weights, cluster_weights(weights, 7, keep_zeros=True))


def test_the_gradient_of_a_centroid_equals_autograds():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 6, (20, 7), generator=generator, dtype=torch.int32)
    codebook = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)  # one has no weights
    assert torch.autograd.gradcheck(lambda values: Lookup.apply(values, codes), codebook)
    upstream = torch.randn(20, 7, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad(Lookup.apply(codebook, codes), codebook, upstream)
    (reference,) = torch.autograd.grad(codebook[codes.long()], codebook, upstream)
    torch.testing.assert_close(ours, reference)
    assert ours[6] == 0


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    return BertForSequenceClassification(BertConfig(max_position_embeddings=16, **sizes)).eval()


def train(model, steps=2):
    """A few steps on one made-up batch, with weight decay, which must not move a zero either."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ids, labels = torch.arange(40).reshape(4, 10), torch.tensor([0, 1, 1, 0])
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


def test_training_changes_codebooks_and_other_weights_but_no_codes(model, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = choose_sizes(model, 8)
    assert "classifier.weight" in sizes  # 2 x 16 weights are just enough
    start_clustering(model, sizes)
    codes = {name: cluster_weights(before[name].numpy(), k).codes for name, k in sizes.items()}
    train(model)
    encoded = remove_parametrizations(model)
    after = model.state_dict()
    assert set(after) == set(before)
    assert set(encoded) == set(sizes)
    for name, value in encoded.items():
        np.testing.assert_array_equal(value.codes, codes[name])
        np.testing.assert_array_equal(after[name].numpy(), value.dense())
        assert not np.isin(value.codebook, cluster_weights(before[name].numpy(), 8).codebook).all(), (
            f"{name} was not trained"
        )
    for name in set(before) - set(sizes):
        if "key.bias" not in name and "position_ids" not in name:  # softmax doesn't see the keys' bias
            assert not torch.equal(before[name], after[name]), f"{name} was not trained"
    packed.write_packed(model, tmp_path, encoded)
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in after.items())
    assert all(len(loaded[name].unique()) <= 8 for name in sizes)


def test_small_matrices_biases_and_layernorms_are_not_clustered(model):
    sizes = choose_sizes(model, 16, embedding_k=4)
    assert "classifier.weight" not in sizes  # 32 weights, 64 needed
    assert "bert.embeddings.token_type_embeddings.weight" in sizes  # 32 weights, 16 needed
    assert {k for name, k in sizes.items() if "embeddings." in name} == {4}
    assert {k for name, k in sizes.items() if "embeddings." not in name} == {16}
    assert not [name for name in sizes if "LayerNorm" in name or "bias" in name]


def test_a_weight_that_cannot_be_clustered_is_named(model):
    torch.nn.init.constant_(model.bert.pooler.dense.weight, 0.5)
    with pytest.raises(UserError, match=r"bert\.pooler\.dense\.weight: 8 clusters need 8 distinct weights"):
        start_clustering(model, choose_sizes(model, 8))


@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_deep_compression_keeps_every_zero_through_training(model, tmp_path, sparsity):
    weights = encoder_matrices(model)
    masks = global_masks(magnitude(weights, None), sparsity)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
    start_clustering(model, choose_sizes(model, 4), tuple(weights))
    train(model)
    encoded = remove_parametrizations(model)
    packed.write_packed(model, tmp_path, encoded)
    loaded = load_model(tmp_path).state_dict()
    for name, mask in masks.items():
        assert torch.equal(loaded[name] != 0, mask)
        assert len(loaded[name].unique()) <= 4
        assert encoded[name].codebook.shape == (4,)
    assert torch.equal(loaded["bert.embeddings.LayerNorm.bias"], model.bert.embeddings.LayerNorm.bias)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, (30, 40)).astype(np.uint8)
    pruned = np.where(rng.random((30, 40)) < 0.95, 2, codes).astype(np.uint8)
    values = np.array([-2, -1, 0, 1, 3], np.float32)
    integers = rng.integers(-7, 8, (30, 40)).astype(np.int8)
    return {
        "raw": torch.from_numpy(rng.normal(size=7)).half(),
        "sparse": packed.Sparse(values[pruned]),
        "codebook": packed.Codebook(codes, values + 0.5),
        "sparse-codebook": packed.Codebook(pruned, values),
        "integer": packed.Integer(integers, rng.random(30).astype(np.float32), 4),
    }


def header_of(path):
    """(header, the bytes after it) of a safetensors file."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def test_every_encoding_reloads_exactly(tensors, tmp_path):
    packed.save_tensors(tmp_path, tensors, execution="dense")
    header, _ = header_of(tmp_path / packed.FILE)
    encodings = json.loads(header["__metadata__"]["encodings"])
    assert {name: entry["encoding"] for name, entry in encodings.items()} == {name: name for name in tensors}
    loaded, about = packed.load_tensors(tmp_path)
    assert about == {"execution": "dense"}
    assert torch.equal(loaded["raw"], tensors["raw"])
    assert loaded["sparse"].numpy().tobytes() == tensors["sparse"].values.tobytes()
    for name in ("codebook", "sparse-codebook"):
        assert loaded[name].numpy().tobytes() == tensors[name].dense().tobytes()
    np.testing.assert_array_equal(loaded["integer"].codes, tensors["integer"].codes)
    np.testing.assert_array_equal(loaded["integer"].scale, tensors["integer"].scale)


@settings(max_examples=30)
@given(st.integers(1, 256), st.floats(0, 1), st.integers(0, 300), st.booleans())
def test_codebooks_of_every_size_and_sparsity_reload_exactly(tmp_path_factory, k, sparsity, count, with_zero):
    rng = np.random.default_rng(k)
    codebook = np.sort(rng.normal(size=k)).astype(np.float32)
    zero = int(rng.integers(k))
    if with_zero:
        codebook[zero] = 0
    codes = np.where(rng.random(count) < sparsity, zero, rng.integers(0, k, count)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("codebook")
    value = packed.Codebook(codes, codebook)
    packed.save_tensors(folder, {"w": value})
    assert packed.load_tensors(folder)[0]["w"].numpy().tobytes() == value.dense().tobytes()


def test_a_mask_is_used_at_high_sparsity():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(384, 384)).astype(np.float32)
    for sparsity, encoding in ((0.0, "codebook"), (0.9, "sparse-codebook")):
        weights[np.abs(weights) < np.quantile(np.abs(weights), sparsity)] = 0
        result = cluster_weights(weights, 16, keep_zeros=True)
        entry, parts = packed._encode_codebook(result)
        assert entry["encoding"] == encoding
        assert sum(part.nbytes for part in parts.values()) <= 1.03 * entropy_bytes(result.codes) + 64


@pytest.mark.parametrize(
    ("name", "part", "shape"),
    [
        ("raw", "", None),
        ("sparse", ".mask", None),
        ("sparse", ".values", None),
        ("sparse", ".values", (3,)),
        ("codebook", ".codes", None),
        ("codebook", ".codes", (9,)),
        ("codebook", ".codebook", None),
        ("codebook", ".codebook", (2,)),
        ("sparse-codebook", ".mask", None),
        ("sparse-codebook", ".mask", (4,)),
        ("sparse-codebook", ".codes", None),
        ("sparse-codebook", ".codebook", None),
        ("sparse-codebook", ".codebook", (1,)),
        ("integer", ".codes", None),
        ("integer", ".codes", (9,)),
        ("integer", ".scale", None),
    ],
)
def test_a_part_that_is_missing_or_of_another_length_names_its_tensor(tensors, tmp_path, name, part, shape):
    packed.save_tensors(tmp_path, tensors)
    path = str(tmp_path / packed.FILE)
    with safe_open(path, "pt") as file:
        about = file.metadata()
        parts = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    old = parts.pop(name + part)
    if shape:
        parts[name + part] = torch.zeros(shape, dtype=old.dtype)
    save_file(parts, path, metadata=about)
    with pytest.raises(UserError, match=rf"packed\.safetensors: tensor {name}: .*{'' if shape else name + part}"):
        packed.load_tensors(tmp_path)


def test_missing_truncated_and_foreign_files_are_named(tensors, tmp_path):
    with pytest.raises(UserError, match=r"packed\.safetensors: missing"):
        packed.load_tensors(tmp_path)
    packed.save_tensors(tmp_path, tensors)
    content = (tmp_path / packed.FILE).read_bytes()
    for length in (0, 5, 200, len(content) - 1):
        (tmp_path / packed.FILE).write_bytes(content[:length])
        with pytest.raises(UserError, match=r"packed\.safetensors: damaged"):
            packed.load_tensors(tmp_path)
    save_file({"a": torch.zeros(3)}, str(tmp_path / packed.FILE))
    with pytest.raises(UserError, match=r"packed\.safetensors: damaged, or not written by this project"):
        packed.load_tensors(tmp_path)


def test_the_weights_of_another_model_are_refused(model, tensors, tmp_path):
    model.config.save_pretrained(tmp_path)
    packed.save_tensors(tmp_path, tensors)
    with pytest.raises(UserError, match=r"packed\.safetensors: not the weights of config\.json"):
        load_model(tmp_path)
    state = model.state_dict()
    packed.save_tensors(tmp_path, state | {"classifier.weight": torch.zeros(3, 16)})
    with pytest.raises(UserError, match=r"another shape.*(?s:.)*classifier\.weight"):
        load_model(tmp_path)


@pytest.mark.slow
def test_a_whole_model_is_clustered_in_15_seconds_and_read_back_in_3(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [(30522, 384), (512, 384), *[(384, 384)] * 24, *[(1536, 384), (384, 1536)] * 6]
    weights = {f"{i}.weight": rng.laplace(0, 0.05, shape).astype(np.float32) for i, shape in enumerate(shapes)}
    started = time.perf_counter()
    encoded = {name: cluster_weights(matrix, 16) for name, matrix in weights.items()}
    clustered = time.perf_counter()
    packed.save_tensors(tmp_path, encoded)
    saved = time.perf_counter()
    tensors, _ = packed.load_tensors(tmp_path)
    assert clustered - started < 15
    assert time.perf_counter() - saved < 3
    assert all((tensors[name].numpy() == of.dense()).all() for name, of in encoded.items())
