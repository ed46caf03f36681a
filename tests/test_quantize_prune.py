"""Quantization and pruning on tiny models: against torch's own operators, autograd and masks."""

import copy
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compress.config.variants import Prune, Training
from compress.engines.int8 import int8_linear
from compress.engines.pytorch import load_model, torch_precision
from compress.errors import UserError
from compress.methods import prune
from compress.methods.criteria import CRITERIA, BlockFisher, Movement, add_gradients, fisher, magnitude, remove_weights
from compress.methods.gptq import DAMPING, gptq, gptq_encoder, layer_hessians
from compress.methods.integers import (
    FakeQuantizedRows,
    int8_weights,
    quantize_weight,
    start_quantization_aware,
    stop_quantization_aware,
)
from compress.methods.made import Context
from compress.methods.masks import (
    GradualPruning,
    cubic_sparsity,
    global_masks,
    set_zeros,
    two_of_four_masks,
)
from compress.methods.networks import encoder_matrices, is_matrix
from compress.methods.sensitivity import choose_bits, groups_of, logits_of, sensitivity
from compress.methods.ternary_bert import start_ternary, ternarize
from compress.methods.training import train
from compress.methods.units import (
    choose_heads,
    inputs_of,
    outputs_of,
    rearranged,
    remove_units,
    swap_units,
    tune_units,
    unit_gradients,
    unit_importance,
    unit_scales,
)
from compress.storage.artifact import embedding_bytes
from compress.storage.packed import FILE, INT8, Integer, Sparse, load_tensors, save_tensors, write_packed
from conftest import SAFE_BITS
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    TrainerControl,
    TrainerState,
)

IDS = torch.randint(5, 90, (6, 11), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(11) < torch.tensor([[11], [4], [7], [11], [2], [9]])).long()


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, pad_token_id=0
    )
    return BertForSequenceClassification(config).eval()


def logits(model, ids=IDS, mask=MASK):
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("per_channel", [True, False])
def test_eight_bit_codes_equal_torchs(per_channel):
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(1))
    ours = quantize_weight(weight, 8, per_channel)
    scale = torch.from_numpy(ours.scale)
    if per_channel:
        theirs = torch.quantize_per_channel(weight, scale, torch.zeros(7), 0, torch.qint8)
    else:
        theirs = torch.quantize_per_tensor(weight, float(scale), 0, torch.qint8)
    assert np.array_equal(ours.codes, theirs.int_repr().numpy())
    assert np.abs(ours.dense() - weight.numpy()).max() <= ours.scale.max() / 2 + 1e-7


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_integers_stay_in_range_and_have_less_error_than_plain_rounding(bits, rows, columns, per_channel, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    ours, top = quantize_weight(weight, bits, per_channel), 2 ** (bits - 1) - 1
    assert np.abs(ours.codes.astype(int)).max() <= top
    largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max()
    plain = (weight / largest * top).round() / top * largest
    # Both scales may differ in their last bit, and so may all weights.
    assert torch.dist(torch.from_numpy(ours.dense()), weight) <= torch.dist(plain, weight) + 1e-6 * weight.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize_weight(torch.tensor([[1.0, bad]]), 8)


def test_constant_and_zero_weights_quantize():
    assert np.allclose(quantize_weight(torch.full((3, 4), 0.5), 4).dense(), 0.5)
    assert np.array_equal(quantize_weight(torch.zeros(3, 4), 8).dense(), np.zeros((3, 4)))


@pytest.mark.parametrize("bits", [8, 4])
def test_an_int8_folder_computes_in_integers_close_to_its_dense_weights(model, tmp_path, bits):
    encoded = {f"{n}.weight": quantize_weight(m.weight, bits) for n, m in model.named_modules() if is_matrix(m)}
    write_packed(model, tmp_path, encoded, execution=INT8)
    loaded, dense = load_model(tmp_path), load_model(tmp_path, dense=True)
    assert torch_precision(loaded) == "int8"
    assert torch_precision(dense) == "fp32"
    kinds = {tensor.dtype for tensor in loaded.state_dict().values() if torch.is_tensor(tensor) and tensor.ndim == 2}
    assert torch.float32 not in {t.dtype for t in loaded.parameters() if t.ndim == 2}, kinds
    for name, integer in encoded.items():
        assert np.array_equal(dense.get_parameter(name).detach().numpy(), integer.dense())
    assert (logits(loaded) - logits(dense)).abs().max() < 0.05  # activations have 8 bits


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_products_are_those_of_inputs_with_256_steps(per_channel):
    torch.manual_seed(0)
    weight, bias, inputs = torch.randn(24, 64), torch.randn(24), torch.randn(2, 9, 64)
    integer = quantize_weight(weight, SAFE_BITS, per_channel)
    scale = (inputs.max() - inputs.min()) / 255
    zero = torch.round(-inputs.min() / scale)
    rounded = torch.fake_quantize_per_tensor_affine(inputs, float(scale), int(zero), 0, 255)
    expected = rounded @ torch.from_numpy(integer.dense()).T + bias
    assert torch.allclose(int8_linear(integer, bias)(inputs), expected, atol=1e-4)


def test_the_bytes_of_embeddings_are_those_of_the_stored_tables(model, tmp_path):
    tables = [name for name, _ in model.named_parameters() if ".embeddings." in name]
    model.save_pretrained(tmp_path / "raw")
    assert embedding_bytes(tmp_path / "raw") == sum(4 * model.get_parameter(name).numel() for name in tables)
    (tmp_path / "packed").mkdir()
    encoded = int8_weights(model)
    write_packed(model, tmp_path / "packed", encoded, execution=INT8)
    with safe_open(tmp_path / "packed" / FILE, "np") as file:
        parts = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 (no mapping)
    assert embedding_bytes(tmp_path / "packed") == sum(size for name, size in parts.items() if ".embeddings." in name)
    assert embedding_bytes(tmp_path) is None


def test_zeros_take_about_a_bit_among_int8_codes(tmp_path):
    codes = np.random.default_rng(0).integers(1, 127, (100, 1000)).astype(np.int8)
    codes[:, 100:] = 0
    save_tensors(tmp_path, {"w": Integer(codes, np.ones(100, np.float32), 8)})
    assert (tmp_path / FILE).stat().st_size < 1.05 * codes.size * (0.9 * 1 + 0.1 * 8) / 8
    assert np.array_equal(load_tensors(tmp_path)[0]["w"].codes, codes)


def test_int8_rows_agree_with_torchs_own_dynamic_quantization(model, tmp_path):
    encoded = {
        f"{n}.weight": quantize_weight(m.weight, 8, False)
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    write_packed(model, tmp_path, encoded, execution=INT8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert (logits(load_model(tmp_path)) - logits(theirs)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("start", "top", "left_out"),
    [
        (lambda model: start_quantization_aware(model, lambda m: FakeQuantizedRows(m.weight, 4)), 7, set()),
        (start_ternary, 1, {"classifier.weight"}),
    ],
)
def test_quantization_aware_training_ends_on_the_grid(model, start, top, left_out, tmp_path):
    hooks = start(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    model(input_ids=IDS, attention_mask=MASK, labels=labels).loss.backward()
    optimizer.step()
    trained = model(input_ids=IDS, attention_mask=MASK).logits
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert any("query.parametrizations.weight.original" in name for name in changed), "no gradient passed the rounding"
    integers = stop_quantization_aware(model, hooks)
    assert set(integers) | left_out == {f"{name}.weight" for name, m in model.named_modules() if is_matrix(m)}
    for name, integer in integers.items():
        float_in_paper = top == 1 and re.search("position_embeddings|token_type_embeddings", name)
        assert np.abs(integer.codes).max() == (127 if float_in_paper else top)
        np.testing.assert_allclose(integer.dense(), model.get_parameter(name).detach().numpy(), atol=1e-6)
    assert (logits(model) - trained).abs().max() < 0.05
    write_packed(model, tmp_path, integers, execution=INT8)
    assert torch.equal(logits(load_model(tmp_path, dense=True)), logits(model))
    assert torch_precision(load_model(tmp_path)) == "int8"


def test_ternary_weights_have_nearly_the_least_possible_error():
    W = torch.randn(5, 2000, generator=torch.Generator().manual_seed(3))
    codes, scale = ternarize(W)
    assert codes.unique().tolist() == [-1, 0, 1]
    torch.testing.assert_close(scale, (W * codes).sum(1, keepdim=True) / codes.abs().sum(1, keepdim=True))
    # If the k largest of a row are not zero, the best scale leaves |w|^2 - (their sum)^2 / k.
    sums = W.abs().sort(descending=True).values.cumsum(1)
    least = W.square().sum(1) - (sums.square() / torch.arange(1, 2001)).amax(1)
    error = (codes * scale - W).square().sum(1)
    assert (least * (1 - 1e-5) <= error).all()
    assert (error < 1.01 * least).all()


def exact_gptq(W, H, scale, bits):
    """GPTQ without Cholesky: the inverse of the remaining columns' Hessian is inverted again for every column."""
    W, Q, top = W.double().clone(), torch.zeros(W.shape).double(), 2 ** (bits - 1) - 1
    H = H.double() + DAMPING * H.double().diagonal().mean() * torch.eye(len(H))
    for j in range(W.shape[1]):
        inverse = torch.linalg.inv(H[j:, j:])
        Q[:, j] = (W[:, j] / scale).round().clamp(-top, top) * scale
        W[:, j:] -= ((W[:, j] - Q[:, j]) / inverse[0, 0]).outer(inverse[0])
    return Q


@pytest.mark.parametrize("bits", [4, 3])
def test_gptq_equals_exact_inverses_and_beats_the_nearest_on_the_same_grid(bits):
    chance = torch.Generator().manual_seed(4)
    W = torch.randn(12, 24, generator=chance)
    X = torch.randn(24, 6, generator=chance) @ torch.randn(6, 200, generator=chance)  # correlated inputs
    X += 0.1 * torch.randn(24, 200, generator=chance)
    H, nearest = 2 * X @ X.T, quantize_weight(W, bits)
    scale = torch.from_numpy(nearest.scale)
    ours = gptq(W, H, scale, bits)
    np.testing.assert_allclose(ours.dense(), exact_gptq(W, H, scale, bits), atol=1e-6)
    errors = [torch.dist(torch.from_numpy(Q.dense()) @ X, W @ X) for Q in (ours, nearest)]
    assert errors[0] < 0.7 * errors[1]
    # Inputs without correlation leave nothing to make up for.
    assert np.array_equal(gptq(W, H.diagonal().diag(), scale, bits).codes, nearest.codes)


def test_gptq_takes_each_layers_inputs_from_the_rounded_layers_before_it(model):
    ids = [row[mask.bool()].tolist() for row, mask in zip(IDS, MASK, strict=True)]
    layers, weights = model.bert.encoder.layer, copy.deepcopy(encoder_matrices(model))
    with torch.inference_mode():
        X = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[0][MASK.bool()].T
    H = layer_hessians(model, layers[0], ids)[layers[0].attention.self.query]
    torch.testing.assert_close(H, 2 * X @ X.T, atol=1e-4, rtol=1e-4)
    integers = gptq_encoder(model, ids, 3)
    assert set(integers) == set(weights)
    for name, integer in integers.items():
        assert np.array_equal(integer.dense(), model.get_parameter(name).detach().numpy())
    name, module = "bert.encoder.layer.1.attention.self.query.weight", layers[1].attention.self.query
    H = layer_hessians(model, layers[1], ids)[module]
    again = gptq(weights[name].detach(), H, torch.from_numpy(quantize_weight(weights[name], 3).scale), 3)
    assert np.array_equal(again.codes, integers[name].codes)


def test_sensitivity_restores_the_model_and_four_bits_cost_more(model, monkeypatch):
    before = copy.deepcopy(model.state_dict())
    ids = [row[mask.bool()].tolist() for row, mask in zip(IDS, MASK, strict=True)]
    labels = np.array([0, 1, 0, 1, 1, 0])
    rows = sensitivity(model, ids, labels)
    assert {row["group"] for row in rows[1:]} == set(groups_of(model))
    assert len(rows) == 1 + 2 * len(groups_of(model))
    by_bits = {bits: np.mean([row["rms_error"] for row in rows if row["bits"] == bits]) for bits in (8, 4)}
    assert 0 < by_bits[8] < by_bits[4] / 4
    assert set(choose_bits(model, ids, labels, rows, 1000).values()) == {4}
    # A group that fails does not keep the next one from being tried.
    scores = iter([0.9, *[0.9 if i % 2 else 0.8 for i in range(len(groups_of(model)))]])
    monkeypatch.setattr("compress.methods.sensitivity.quality", lambda *_: {"f1": next(scores)})
    bits = list(choose_bits(model, ids, labels, rows, 0.5).values())
    assert bits.count(4) == len(bits) // 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    np.testing.assert_allclose(logits_of(model, ids), logits(model).numpy(), atol=1e-5)


@given(st.floats(0, 1), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_sparsity_is_exact_and_the_larger_scores_survive(sparsity, sizes):
    rng = torch.Generator().manual_seed(sum(sizes))
    scores = {str(i): torch.rand(size, generator=rng) for i, size in enumerate(sizes)}
    masks = global_masks(scores, sparsity)
    flat, kept = torch.cat(list(scores.values())), torch.cat(list(masks.values()))
    assert int((~kept).sum()) == round(sparsity * len(flat))
    if kept.any() and not kept.all():
        assert flat[~kept].max() <= flat[kept].min()


def test_two_of_four_keeps_the_two_largest_of_every_four():
    scores = {"a": torch.rand(6, 16, generator=torch.Generator().manual_seed(0))}
    mask = two_of_four_masks(scores)["a"].reshape(-1, 4)
    assert (mask.sum(1) == 2).all()
    groups = scores["a"].reshape(-1, 4)
    assert (groups.masked_fill(~mask, 9).amin(1) >= groups.masked_fill(mask, -9).amax(1)).all()


def test_the_schedule_is_cubic_and_ends_at_its_target():
    assert cubic_sparsity(0.2, 0.9, 0) == pytest.approx(0.2)
    assert cubic_sparsity(0.2, 0.9, 0.5) == pytest.approx(0.9 - 0.7 / 8)
    assert cubic_sparsity(0.2, 0.9, 7) == 0.9


class Tokenizer:
    """The part of a tokenizer that a collator uses."""

    padding_side, model_input_names = "right", ["input_ids", "attention_mask"]

    def pad(self, rows, return_tensors=None, **_):
        length = max(len(row["input_ids"]) for row in rows)
        out = {k: torch.tensor([row[k] + [0] * (length - len(row[k])) for row in rows]) for k in self.model_input_names}
        return out | {"labels": torch.tensor([row["labels"] for row in rows])}


def context(work):
    return Context(None, 0, "cpu", "cpu", 1, None, ["a", "b"], None, work, work / "work", work / "cache")


def dataset():
    rows = [row[mask.bool()].tolist() for row, mask in zip(IDS, MASK, strict=True)] * 8
    teacher = torch.randn(len(rows), 2, generator=torch.Generator().manual_seed(2)).tolist()
    masks = [[1] * len(row) for row in rows]
    labels = [0, 1, -100, 1, 1, 0] * 8
    return Dataset.from_dict({"input_ids": rows, "attention_mask": masks, "labels": labels, "teacher_logits": teacher})


@pytest.mark.parametrize(
    ("criterion", "pattern"),
    [(criterion, "unstructured") for criterion in CRITERIA] + [("magnitude", "2:4")],
)
def test_gradual_pruning_trains_the_survivors_and_prunes_nothing_else(model, tmp_path, criterion, pattern):
    before = copy.deepcopy(model.state_dict())
    schedule = GradualPruning(model, criterion, 0.0, 0.5, pattern, every=2)
    options = Training(epochs=2, batch_size=8, learning_rate=1e-2)
    seconds = train(model, Tokenizer(), dataset(), options, context(tmp_path), callbacks=[schedule])
    assert seconds > 0
    weights = encoder_matrices(model)
    assert len(weights) == 2 * 6
    total = sum(w.numel() for w in weights.values())
    assert sum(int((w == 0).sum()) for w in weights.values()) == round(0.5 * total)
    for name, weight in weights.items():
        assert torch.equal(weight != 0, schedule.masks[name])
        if pattern == "2:4":
            assert ((weight.reshape(-1, 4) != 0).sum(1) == 2).all()
        if weight.any():  # a criterion may empty a matrix
            assert not torch.equal(weight[weight != 0], before[name][weight != 0]), "the survivors were not trained"
    for name, weight in model.named_parameters():
        if name not in weights:
            assert not ((weight == 0) & (before[name] != 0)).any(), f"{name} was pruned"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_no_checkpoint_is_written_while_it_would_lack_a_criterions_sums(model, criterion):
    schedule = GradualPruning(model, criterion, 0.0, 0.5)
    schedule.on_train_begin(None, None, None)
    saved = []
    for step in (5, 6):
        control = TrainerControl(should_save=True)
        schedule.on_step_end(None, TrainerState(global_step=step, max_steps=10), control)
        saved.append(control.should_save)
    assert saved == [criterion in ("magnitude", "fisher"), True]


def test_a_parent_that_has_lost_heads_is_not_pruned_again(model, monkeypatch):
    model.prune_heads({0: [0]})
    monkeypatch.setattr(prune, "load_model", lambda _: model)
    with pytest.raises(UserError, match="has lost heads already"):
        prune.structured(None, SimpleNamespace(parent=None))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 0.7, "criterion": "fisher"}, "needs a training"),
        ({"sparsity": 0.7, "criterion": "movement"}, "needs a training"),
        ({"sparsity": 0.7, "pattern": "2:4"}, 'needs sparsity = 0.5 and criterion = "magnitude"'),
        (
            {"sparsity": 0.5, "pattern": "2:4", "criterion": "fisher"},
            'needs sparsity = 0.5 and criterion = "magnitude"',
        ),
    ],
)
def test_contradictory_pruning_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Prune.model_validate({"name": "x", "parent": "p", "method": "prune"} | options)


def test_the_fisher_score_equals_optimal_brain_damage(model):
    optimizer = torch.optim.Adam(
        model.parameters(), betas=(0.0, 0.0)
    )  # without memory the moment is the squared gradient
    model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1, 0, 1, 1, 0])).loss.backward()
    weights = encoder_matrices(model)
    expected = {name: w.detach() ** 2 * w.grad**2 / 2 for name, w in weights.items()}
    values = {name: w.detach().clone() for name, w in weights.items()}
    optimizer.step()
    with torch.no_grad():
        for name, w in weights.items():
            w.copy_(values[name])
    for name, score in fisher(weights, optimizer).items():
        torch.testing.assert_close(score, expected[name])


def test_the_block_inverse_and_its_update_equal_dense_linear_algebra():
    """Against one inverse of lambda I + 1/m sum g g^T per block, and the constrained least squares of all removals."""
    rng = torch.Generator().manual_seed(3)
    blocks, size, m, damping = 4, 12, 40, 1e-2
    g = torch.randn(m, blocks, size, generator=rng, dtype=torch.float64)
    P = torch.eye(size, dtype=torch.float64).repeat(blocks, 1, 1) / damping
    for part in g.split([1, 8, 8, 23]):
        add_gradients(P, part.transpose(0, 1), m)
    F = damping * torch.eye(size) + torch.einsum("mbi,mbj->bij", g, g) / m
    torch.testing.assert_close(P, torch.linalg.inv(F))

    w = torch.randn(blocks, size, generator=rng, dtype=torch.float64)
    gone = torch.rand(blocks, size, generator=rng) < torch.tensor([[0.0], [0.3], [0.6], [1.0]])
    updated = w.clone()
    remove_weights(updated, P, gone)
    for b in range(blocks):
        kept, lost = ~gone[b], gone[b]
        # min d^T F d with d = -w at the lost weights: F_kk d_k = F_kl w_l
        expected = w[b].clone()
        expected[kept] += torch.linalg.solve(F[b][kept][:, kept], F[b][kept][:, lost] @ w[b][lost])
        torch.testing.assert_close(updated[b][kept], expected[kept])
        torch.testing.assert_close(P[b][kept][:, kept], torch.linalg.inv(F[b][kept][:, kept]))
    assert updated[gone].abs().max() < 1e-10
    assert P.diagonal(dim1=1, dim2=2)[gone].abs().max() < 1e-10


def test_block_fisher_scores_are_those_of_the_survivors_of_each_block():
    rng = torch.Generator().manual_seed(4)
    weights = {"a": torch.randn(3, 64, generator=rng), "b": torch.randn(5, 7, generator=rng)}
    weights["a"][0, ::2] = 0
    masks = {name: w != 0 for name, w in weights.items()}
    gradients = [{name: 1e-3 * torch.randn(w.shape, generator=rng) for name, w in weights.items()} for _ in range(11)]
    criterion = BlockFisher(weights, 11)
    for step in gradients:
        for name, w in weights.items():
            w.grad = step[name]
        criterion.observe(weights)
    scores = criterion.scores(weights, masks, None)
    assert (scores["a"][~masks["a"]] == -1).all()
    for name, size in (("a", 32), ("b", 7)):
        g = torch.stack([step[name] for step in gradients]).double().view(11, -1, size)
        for b, (w, mask) in enumerate(
            zip(weights[name].double().view(-1, size), masks[name].view(-1, size), strict=True)
        ):
            F = 1e-7 * torch.eye(size) + g[:, b].T @ g[:, b] / 11
            expected = w[mask] ** 2 / (2 * torch.linalg.inv(F[mask][:, mask]).diagonal())
            ours = scores[name].view(-1, size)[b][mask].double()
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=0)


def test_movement_equals_scores_trained_by_the_straight_through_estimator():
    """Against autograd on W M with latent weights W: d(W M)/dS passes the mask M unchanged."""
    rng = torch.Generator().manual_seed(5)
    x, y = torch.randn(20, 6, generator=rng), torch.randn(20, 4, generator=rng)
    start = torch.randn(4, 6, generator=rng)
    start[0, 0] = 0  # never returns
    latent, S = start.clone().requires_grad_(), torch.zeros(4, 6, requires_grad=True)
    weights = {"w": torch.nn.Parameter(start.clone())}
    masks = {"w": start != 0}
    criterion, reference = Movement(weights, 40), masks["w"]
    optimizers = torch.optim.SGD([latent, S], lr=0.1), torch.optim.SGD(weights.values(), lr=0.1)
    returned = 0
    for step in range(40):
        straight_through = reference + S - S.detach()
        ((x @ (latent * straight_through).T - y) ** 2).mean().backward()
        ((x @ weights["w"].T - y) ** 2).mean().backward()
        criterion.observe(weights)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 4 == 3:
            count = round(24 * (0.5 if step < 20 else 0.6))
            lowest = S.detach().masked_fill(start == 0, -torch.inf).flatten().argsort()[:count]
            before, reference = reference, torch.ones(24, dtype=bool).index_fill(0, lowest, False).view(4, 6)
            returned += int((reference & ~before).sum())
            new = global_masks(criterion.scores(weights, masks, None), count / 24)
            criterion.change(weights, masks, new)
            masks = new
        set_zeros(weights, masks)
        assert torch.equal(masks["w"], reference)
        torch.testing.assert_close(weights["w"].detach(), (latent * reference).detach())
        torch.testing.assert_close(0.1 * criterion.S["w"][start != 0], S.detach()[start != 0])
    assert returned, "no weight came back: the case is not tested"


def test_a_folder_whose_weights_lack_a_tensor_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if k != "classifier.bias"})
    with pytest.raises(UserError, match=r"not the weights of config\.json: classifier\.bias"):
        load_model(tmp_path)


def test_a_sparse_folder_reloads_exactly_and_other_shapes_are_refused(model, tmp_path):
    weights = encoder_matrices(model)
    with torch.no_grad():
        for name, mask in global_masks(magnitude(weights, None), 0.8).items():
            weights[name].mul_(mask)
    folder = tmp_path / "a"
    folder.mkdir()
    write_packed(model, folder, {name: Sparse(w.detach().numpy()) for name, w in weights.items()})
    loaded = load_model(folder)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    model.config.hidden_size = 16
    model.config.save_pretrained(folder)
    with pytest.raises(UserError, match=f"{FILE}: weights of another shape"):
        load_model(folder)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.lists(st.sets(st.integers(0, 3), max_size=3), min_size=2, max_size=2),
    count=st.integers(1, 48),
    seed=st.integers(0, 999),
)
def test_removing_units_equals_masking_them_and_reloads(model, tmp_path, heads, count, seed):
    gone = dict(enumerate(map(sorted, heads)))
    chance = torch.Generator().manual_seed(seed)
    kept = torch.stack([torch.randperm(48, generator=chance)[:count] for _ in range(2)])
    masked, model = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for i, layer in enumerate(masked.bert.encoder.layer):
            for head in gone[i]:
                layer.attention.output.dense.weight[:, head * 8 : head * 8 + 8] = 0
            off = [n for n in range(48) if n not in kept[i]]
            layer.output.dense.weight[:, off] = 0
    remove_units(model, gone, kept)
    torch.testing.assert_close(logits(model), logits(masked), atol=1e-5, rtol=0)
    removed = sum(p.numel() for p in masked.parameters()) - sum(p.numel() for p in model.parameters())
    assert removed == sum(map(len, heads)) * 8 * (4 * 32 + 3) + 2 * (48 - count) * (2 * 32 + 1)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(reloaded), logits(model), atol=0, rtol=0)


LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def batches():
    return [
        {"input_ids": IDS[i : i + 3], "attention_mask": MASK[i : i + 3], "labels": LABELS[i : i + 3]} for i in (0, 3)
    ]


def test_importance_equals_the_squared_derivative_by_gates(model):
    heads, neurons = unit_importance(unit_gradients(model, batches()))
    expected_heads, expected_neurons = torch.zeros(2, 4), torch.zeros(2, 48)
    for s in range(6):
        gates = [(torch.ones(4, requires_grad=True), torch.ones(48, requires_grad=True)) for _ in range(2)]
        hooks = []
        for layer, (head, neuron) in zip(model.bert.encoder.layer, gates, strict=True):
            hooks.append(
                layer.attention.output.dense.register_forward_pre_hook(
                    lambda _, x, g=head: (x[0] * g.repeat_interleave(8),)
                )
            )
            hooks.append(layer.output.dense.register_forward_pre_hook(lambda _, x, g=neuron: (x[0] * g,)))
        model(input_ids=IDS[s : s + 1], attention_mask=MASK[s : s + 1], labels=LABELS[s : s + 1]).loss.backward()
        for hook in hooks:
            hook.remove()
        for i, (head, neuron) in enumerate(gates):
            expected_heads[i] += head.grad**2
            expected_neurons[i] += neuron.grad**2
    torch.testing.assert_close(heads, expected_heads, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(neurons, expected_neurons, rtol=1e-3, atol=1e-10)


def test_every_layer_keeps_a_head_and_the_most_important_stay():
    importance = torch.tensor([[9.0, 8.0, 7.0, 6.0], [0.1, 0.2, 0.05, 0.3]])
    gone = choose_heads(importance, 4)
    assert gone == {0: [3], 1: [0, 1, 2]}


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
def test_rearranged_masks_equal_the_papers_own_search(units, count, seed):
    """greedy_rearrange of the paper's published code, which sums gradient vectors."""
    g = torch.randn(5, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    count = min(count, units)
    order = g.square().sum(0).argsort().tolist()
    masked = order[:count]
    for unit in order[count:] if count else []:
        masked.append(unit)
        vectors = g.T[masked]
        del masked[(vectors.sum(0) - vectors).square().sum(1).argmin()]
    assert set(rearranged(g, count).nonzero().flatten().tolist()) == set(masked)


def test_rearranging_keeps_the_counts_and_lowers_the_fisher_loss(model):
    gradients = list(unit_gradients(model, batches()))
    heads, neurons = unit_importance(gradients)
    before = choose_heads(heads, 5), neurons.topk(30, dim=1).indices
    after = swap_units(gradients, *before)
    assert [len(gone) for gone in after[0].values()] == [len(gone) for gone in before[0].values()]
    g = torch.cat([batch["neuron", 1] for batch in gradients])
    loss = [(g.sum(1) - g[:, kept[1]].sum(1)).square().sum() for kept in (before[1], after[1])]
    assert loss[1] < loss[0]
    assert all(len(set(row.tolist())) == 30 for row in after[1])


@pytest.mark.parametrize("units", [4, 12])
def test_unit_scales_equal_damped_least_squares(units):
    rng = torch.Generator().manual_seed(6)
    x, weight = torch.randn(50, 12, generator=rng), torch.randn(7, 12, generator=rng)
    missing = torch.randn(50, 7, generator=rng)
    size = 12 // units
    columns = [x[:, u * size :][:, :size] @ weight[:, u * size :][:, :size].T for u in range(units)]
    A = torch.stack([column.flatten() for column in columns], 1).double()
    damping = (0.01 * A.square().sum(0).mean()).sqrt()
    rows = torch.cat([A, damping * torch.eye(units)])
    expected = 1 + torch.linalg.lstsq(rows, torch.cat([missing.flatten().double(), torch.zeros(units)])).solution
    torch.testing.assert_close(unit_scales(x, missing, weight, units), expected.float(), rtol=1e-3, atol=1e-4)


def test_tuning_brings_every_layer_closer_to_the_parent_and_undoes_nothing_else(model):
    before = copy.deepcopy(model.state_dict())
    tune_units(model, copy.deepcopy(model), batches())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])  # nothing is missing: all scales are 1
    parent = copy.deepcopy(model)
    remove_units(model, {0: [1], 1: [0, 2]}, torch.arange(24).repeat(2, 1))
    tuned = copy.deepcopy(model)
    tune_units(tuned, parent, batches())
    (_, _, target), (_, _, untuned_norm), (_, _, norm) = (outputs_of(net)[-1] for net in (parent, model, tuned))
    with torch.no_grad():
        (wanted,), (untuned,), (ours,) = (
            inputs_of(net, [layer], batches())
            for net, layer in ((parent, target), (model, untuned_norm), (tuned, norm))
        )
    assert torch.dist(ours, wanted) < 0.95 * torch.dist(untuned, wanted)
    assert len(wanted) == MASK.sum()
