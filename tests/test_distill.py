"""Distillation: losses against NumPy and SciPy, students against their teacher, vocabularies on any text."""

import json
import math
import random
import re
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compress.config.profile import load_profile, logits_file
from compress.config.variants import Distill, Student, Training
from compress.data.card import held_out, load_splits
from compress.data.partition import dataset_dict, split_snippets
from compress.data.sentences import fingerprint
from compress.engines.predictor import load, load_tokenizer, predict, token_ids
from compress.errors import Skip, UserError
from compress.files import digest, read_arrays
from compress.graph import teacher_logits
from compress.methods import large_teacher, teaching
from compress.methods.distill import larger_network
from compress.methods.losses import UNLABELLED, distillation_loss, hidden_loss, inner_losses, relation_loss
from compress.methods.student import make_student, shared_indices
from compress.methods.teaching import tokenized
from compress.methods.training import set_dropout, train
from compress.methods.transfer import augment, transfer_set
from compress.methods.vocabulary import choose_pieces, count_pieces, trim_embeddings, write_trimmed
from conftest import save_model
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax
from scipy.stats import entropy
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, TrainerCallback

PARTS = {"train": ["good film", "the bad plot of the film"], "unlabelled": [f"{word} stories" for word in "abcdefghij"]}
WORDS = ["good", "bad", "film", "films", "plot", "great", "story", "stories", "the", "of", "dull"]
WORDS += ["un", "##ing", "##ed", "##ory", "##believ", "##able"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz.,!#é中"
SPECIALS = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "A good film, great story!",
    "The dull plot of bad films.",
    "Unbelievable stories",
    "good good film of the story",
]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small WordPiece tokenizer whose specials, like BERT's, are not the first ids."""
    singles = [c for character in CHARACTERS for c in (character, "##" + character)]
    pieces = ["[PAD]", "[unused0]", *WORDS[:4], *SPECIALS, *singles, *WORDS[4:]]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ["[PAD]", *SPECIALS]])
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    names = ", ".join(f'"{t[1:-1].lower()}_token": "{t}"' for t in ["[PAD]", *SPECIALS])
    (path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "BertTokenizer", {names}}}')
    return path


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=40,
        id2label={0: "no", 1: "yes"},
        initializer_range=0.2,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for name, weight in model.named_parameters():  # LayerNorms and biases that a wrong index would show in
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=1.0 if "LayerNorm.weight" in name else 0.0, std=0.3)
    return model


def batch(lengths=(7, 4, 1)):
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    ids = torch.randint(1, 120, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_distillation_loss_equals_scipy():
    student, teacher = rand(5, 3), rand(5, 3, seed=1)
    labels = torch.tensor([0, 2, UNLABELLED, 1, UNLABELLED])
    soft = entropy(*(np.exp(log_softmax(x.numpy() / 3, axis=1)) for x in (teacher, student)), axis=1).mean()
    hard = -log_softmax(student.numpy(), axis=1)[[0, 1, 3], [0, 2, 1]].mean()
    for weight in (0.0, 0.4, 1.0):
        got = distillation_loss(student, teacher, labels, 3.0, weight)
        assert float(got) == pytest.approx((1 - weight) * hard + weight * 9 * soft, rel=1e-9)
    alone = distillation_loss(student, teacher, torch.full((5,), UNLABELLED), 3.0, 0.4)
    assert float(alone) == pytest.approx(0.4 * 9 * soft, rel=1e-9)


def test_distillation_loss_has_its_minimum_at_the_teacher_and_the_right_gradient():
    labels = torch.tensor([0, 1, UNLABELLED, 2])
    teacher = rand(4, 3)
    at_teacher = teacher.clone().requires_grad_()
    loss = distillation_loss(at_teacher, teacher, labels, 2.0, 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert at_teacher.grad.abs().max() < 1e-12
    student = rand(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher, labels, 2.0, 0.7), student)


@given(
    arrays(np.float64, (4, 3), elements=st.floats(-30, 30)),
    arrays(np.float64, (4, 3), elements=st.floats(-30, 30)),
    st.floats(0.5, 8),
)
def test_the_soft_loss_is_zero_for_equal_logits_and_never_negative(student, teacher, temperature):
    labels = torch.full((4,), UNLABELLED)
    loss = [
        float(distillation_loss(torch.tensor(x), torch.tensor(teacher), labels, temperature, 1.0))
        for x in (teacher, student)
    ]
    assert loss[0] == pytest.approx(0, abs=1e-9)
    assert loss[1] >= -1e-9


def test_hidden_loss_is_the_mean_square_over_real_tokens():
    student, teacher = rand(2, 4, 6), rand(2, 4, 6, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    real = np.array([[0, 0], [0, 1], [0, 2], [1, 0]]).T
    want = np.mean((student.numpy()[*real] - teacher.numpy()[*real]) ** 2)
    assert float(hidden_loss(student, teacher, mask)) == pytest.approx(want, rel=1e-12)


def test_relation_loss_equals_a_loop_over_tokens():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    student, teacher = (rand(2, 4, 4), rand(2, 4, 4, seed=1)), (rand(2, 4, 12, seed=2), rand(2, 4, 12, seed=3))
    divergences = []
    for row, length in enumerate((3, 2)):
        for head in range(2):
            for token in range(length):
                by_key = []
                for left, right in (teacher, student):
                    size = left.shape[-1] // 2
                    part = slice(head * size, (head + 1) * size)
                    scores = right[row, :length, part].numpy() @ left[row, token, part].numpy() / math.sqrt(size)
                    by_key.append(np.exp(log_softmax(scores)))
                divergences.append(entropy(*by_key))
    assert float(relation_loss(student, teacher, mask, 2)) == pytest.approx(np.mean(divergences), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inner_losses_are_zero_for_equal_tensors_and_ignore_padding(dtype):
    student, teacher = rand(2, 3, 8).to(dtype), rand(2, 3, 8, seed=1).to(dtype)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])

    def losses(a, b, mask):
        return [float(hidden_loss(a, b, mask)), float(relation_loss((a, a), (b, b), mask, 4))]

    assert losses(student, student, mask) == [0, 0]
    before = losses(student, teacher, mask)
    assert min(before) > 0.01
    wide = [torch.cat([x, 1e3 * rand(2, 2, 8, seed=i).to(dtype)], 1) for i, x in enumerate((student, teacher))]
    for x in wide:
        x[1, 2] += 7  # the masked token
    assert losses(*wide, torch.cat([mask, torch.zeros(2, 2, dtype=int)], 1)) == pytest.approx(before, rel=1e-6)


def test_inner_losses_of_equal_networks_are_zero_and_leave_no_trace(teacher):
    copy = make_student(teacher, Student(layers=[0, 1, 2, 3]), "parent", 0)
    inputs = batch()
    names = list(copy.state_dict())
    with inner_losses(copy, teacher, 1.0, 1.0) as extra_loss:
        assert float(extra_loss(inputs, copy(**inputs)).detach()) == pytest.approx(0, abs=1e-9)
    assert list(copy.state_dict()) == names
    assert not any(module._forward_hooks for model in (copy, teacher) for module in model.modules())
    with inner_losses(copy, teacher, 0.0, 0.0) as extra_loss:
        assert extra_loss is None


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 32, "intermediate_size": 64, "heads": 4}])
def test_a_student_of_full_size_equals_its_teacher(teacher, sizes):
    student = make_student(teacher, Student(layers=[0, 1, 2, 3], **sizes), "parent", 0)
    assert torch.allclose(logits(student, batch()), logits(teacher, batch()), atol=1e-6)
    student.classifier.weight.data.zero_()
    assert teacher.classifier.weight.abs().min() > 0, "the student must not share the teacher's memory"


def test_a_student_of_some_layers_has_the_logits_of_its_teacher_without_the_others(teacher):
    shorter = deepcopy(teacher)
    del shorter.bert.encoder.layer[1:3]
    student = make_student(teacher, Student(layers=[0, 3]), "parent", 0)
    torch.testing.assert_close(logits(student, batch()), logits(shorter, batch()))


def test_neurons_without_effect_are_removed_first(teacher):
    copy = make_student(teacher, Student(layers=[0, 1, 2, 3]), "parent", 0)
    for i, layer in enumerate(copy.bert.encoder.layer):
        dead = torch.randperm(64, generator=torch.Generator().manual_seed(i))[:24]
        layer.output.dense.weight.data[:, dead] = 0
    student = make_student(copy, Student(layers=[0, 1, 2, 3], intermediate_size=40), "parent", 0)
    assert torch.allclose(logits(student, batch()), logits(copy, batch()), atol=1e-5)


def test_narrow_students_keep_whole_heads_and_one_set_of_dimensions(teacher):
    student = make_student(teacher, Student(layers=[1, 2], hidden_size=16, heads=2), "parent", 0)
    shared = shared_indices(teacher, student.config)
    stream = shared["hidden"]
    words = teacher.bert.embeddings.word_embeddings.weight
    assert torch.equal(student.bert.embeddings.word_embeddings.weight, words[:, stream])
    for own, theirs in zip(student.bert.encoder.layer, teacher.bert.encoder.layer[1:3], strict=True):
        assert torch.equal(own.output.LayerNorm.weight, theirs.output.LayerNorm.weight[stream])
        norms = theirs.attention.output.dense.weight.view(32, 4, 8).norm(dim=(0, 2))
        heads = sorted(norms.argsort(descending=True)[:2].tolist())
        query = theirs.attention.self.query.weight.view(4, 8, 32)[heads].reshape(16, 32)
        assert torch.equal(own.attention.self.query.weight, query[:, stream])
        output = theirs.attention.output.dense.weight.view(32, 4, 8)[:, heads].reshape(32, 16)
        assert torch.equal(own.attention.output.dense.weight, output[stream])
    assert torch.equal(student.classifier.weight, teacher.classifier.weight[:, shared["pooled"]])
    smaller = make_student(teacher, Student(layers=[0], hidden_size=16, heads=4), "parent", 0)
    query = teacher.bert.encoder.layer[0].attention.self.query.bias.view(4, 8)[:, :4].flatten()
    assert torch.equal(smaller.bert.encoder.layer[0].attention.self.query.bias, query)


def test_random_students_depend_on_the_seed_alone(teacher):
    shape = Student(layers=[0, 9], hidden_size=24, heads=2, intermediate_size=100)
    one, same, other = (make_student(teacher, shape, "random", seed) for seed in (0, 0, 1))
    assert torch.equal(logits(one, batch()), logits(same, batch()))
    assert not torch.equal(logits(one, batch()), logits(other, batch()))
    assert one.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ({"layers": [0, 4]}, "layers"),
        ({"layers": [0], "hidden_size": 64}, "hidden_size"),
        ({"layers": [0], "intermediate_size": 65}, "intermediate_size"),
        ({"layers": [0], "heads": 8}, "heads"),
        ({"layers": [0], "heads": 2}, "size of a head"),
    ],
)
def test_a_student_larger_than_its_teacher_is_refused(teacher, shape, name):
    with pytest.raises(UserError, match=f"student: {name}: "):
        make_student(teacher, Student(**shape), "parent", 0)


class Killed(Exception):
    pass


class KillAfterCheckpoint(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_save(self, _arguments, state, _control, **_):
        if state.global_step >= self.step:
            raise Killed


@pytest.fixture
def learn(teacher, folder, tmp_path):
    """Trains a narrow student with all losses in a folder of that name; returns it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenized(TEXTS * 4, [0, 1, -1, 1] * 4, tokenizer, 16)
    teacher_logits = [[0.5, -0.5]] * len(rows)
    rows = rows.add_column("teacher_logits", teacher_logits)
    options = Training(epochs=2.0, batch_size=4, learning_rate=1e-2)

    def run(name, callbacks=(), **more):
        context = SimpleNamespace(work=tmp_path / name, seed=0, train_device="cpu")
        shape = Student(layers=[0, 2], hidden_size=16, intermediate_size=24, heads=2)
        student = make_student(teacher, shape, "parent", 0)
        before = {key: value.clone() for key, value in student.state_dict().items()}
        with inner_losses(student, teacher, 1.0, 1.0) as extra_loss:
            projection = student.hidden_projection.weight
            start = projection.detach().clone()
            changed = options.model_copy(update=more)
            train(student, tokenizer, rows, changed, context, extra_loss=extra_loss, callbacks=callbacks)
            assert not torch.equal(projection, start), "the projection must be trained"
        assert not torch.equal(before["classifier.weight"], student.classifier.weight)
        return student.eval()

    return run


def test_a_narrow_student_trains_and_reloads(learn, teacher, tmp_path):
    before = logits(teacher, batch())
    student = learn("work")
    student.save_pretrained(tmp_path / "saved")
    reloaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"], "what only training needs must not be saved"
    trained = student.state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in reloaded.state_dict().items())
    assert logits(reloaded.eval(), batch()).isfinite().all()
    config = reloaded.config
    sizes = config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads
    assert sizes == (2, 16, 24, 2)
    assert config.id2label == {0: "no", 1: "yes"}
    assert torch.equal(logits(teacher, batch()), before), "the teacher must not learn"


@pytest.mark.parametrize("step", [2, 4, 6])  # an epoch has four steps
def test_a_killed_training_resumes_to_the_same_student(learn, step):
    with pytest.raises(Killed):
        learn("killed", callbacks=[KillAfterCheckpoint(step)], evaluations_per_epoch=2)
    resumed, whole = learn("killed", evaluations_per_epoch=2), learn("whole", evaluations_per_epoch=2)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


class Evaluations(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_evaluate(self, _arguments, state, _control, **_):
        self.steps.append(state.global_step)


def test_the_last_state_is_evaluated_even_within_an_epoch(teacher, folder, tmp_path):
    tokenizer, seen = AutoTokenizer.from_pretrained(folder), Evaluations()
    rows = tokenized(TEXTS * 4, [0, 1, 0, 1] * 4, tokenizer, 16)
    context = SimpleNamespace(work=tmp_path / "work", seed=0, train_device="cpu")
    options = Training(epochs=1.5, batch_size=4, learning_rate=1e-2)
    train(deepcopy(teacher), tokenizer, rows, options, context, validation=rows, callbacks=[seen])
    assert seen.steps == [4, 6]


def test_a_network_that_has_lost_heads_is_no_source_of_a_student(teacher):
    pruned = deepcopy(teacher)
    pruned.prune_heads({0: [0]})
    with pytest.raises(UserError, match="has lost heads"):
        make_student(pruned, Student(layers=[0]), "parent", 0)


def test_a_training_reports_its_progress(learn, capsys, monkeypatch):
    monkeypatch.setattr("compress.methods.training.PROGRESS_SECONDS", 0.0)
    learn("shown")
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith("shown: ")]
    assert [line.split(", ")[0] for line in shown] == [f"shown: step {n} of 8" for n in range(1, 9)]
    assert all(re.fullmatch(r"shown: step \d of 8, \d+ %, \d+ s left", line) for line in shown)
    assert shown[-1] == "shown: step 8 of 8, 100 %, 0 s left"


def test_teacher_logits_are_computed_once_per_teacher_and_texts(teacher, folder, tmp_path, monkeypatch):
    save_model(tmp_path / "t", teacher.save_pretrained, folder)
    loads = []
    monkeypatch.setattr(teaching, "load", lambda *arguments: loads.append(1) or load(*arguments))
    context = SimpleNamespace(baseline=tmp_path / "t", cache=tmp_path / "cache", train_device="cpu", threads=1)
    first = teaching.baseline_logits(context, TEXTS)
    ids = [torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"]]) for text in TEXTS]
    expected = torch.cat([logits(teacher, {"input_ids": row}) for row in ids])
    np.testing.assert_allclose(first, expected.numpy(), atol=1e-5)
    assert (teaching.baseline_logits(context, TEXTS) == first).all()
    assert len(loads) == 1
    teaching.baseline_logits(context, TEXTS[:2])
    save_model(tmp_path / "t", deepcopy(teacher).half().save_pretrained, folder)
    teaching.baseline_logits(context, TEXTS)
    assert len(loads) == 3


@pytest.fixture
def large(teacher, folder, tmp_path, monkeypatch):
    """A profile with a large teacher, the smoke profile, whose baseline is built for seed 3."""
    splits = {name: Dataset.from_dict({"text": texts, "label": [0] * len(texts)}) for name, texts in PARTS.items()}
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    monkeypatch.setattr(large_teacher, "ROOT", tmp_path)
    monkeypatch.setattr(teacher_logits, "load_splits", lambda *_: splits)
    for module in (large_teacher, teacher_logits):
        monkeypatch.setattr(module, "load_card", lambda *_: {"fingerprint": "f"})
    smoke = load_profile("smoke")
    save_model(smoke.variant_folder(smoke.baseline, 3), teacher.save_pretrained, folder)
    return SimpleNamespace(profile=smoke.model_copy(update={"teacher": "smoke"}), seed=3, splits=splits)


def stored_logits(large, texts):
    return large_teacher.large_teacher_logits(large.profile, large.seed, texts)


def test_a_large_teachers_logits_are_read_for_their_own_texts_only(large, teacher, folder, monkeypatch):
    again = "make teacher PROFILE=smoke SEEDS=3"
    with pytest.raises(Skip, match=again):
        stored_logits(large, PARTS["train"])
    assert teacher_logits.write_teacher_logits(large.profile, 3, "cpu", 1) == 2 * len(PARTS["train"]) + 10
    ids = [torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"]]) for text in PARTS["train"]]
    expected = torch.cat([logits(teacher, {"input_ids": row}) for row in ids]).numpy()
    stored = stored_logits(large, PARTS["train"])
    assert stored_logits(large, held_out(large.splits)).shape == (1, 2)
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match=f"learned from other sentences(.|\n)*{again}"):
        stored_logits(large, [*PARTS["train"], "more"])
    monkeypatch.setattr(large_teacher, "load_card", lambda *_: {"fingerprint": "of another fold"})
    with pytest.raises(UserError, match="learned from other sentences"):
        stored_logits(large, PARTS["train"])


def test_a_student_learns_from_the_large_teacher_on_its_transfer_set(large, folder):
    teacher_logits.write_teacher_logits(large.profile, 3, "cpu", 1)
    path = large.profile.teacher_file(3)
    date = path.stat().st_mtime_ns
    teacher_logits.write_teacher_logits(large.profile, 3, "cpu", 1)
    assert path.stat().st_mtime_ns == date, "equal logits must leave the file alone"
    options = Training(epochs=1.0, learning_rate=1e-3, teacher="large", transfer=["train", "augmented", "unlabelled"])
    rows = teaching.student_data(large, AutoTokenizer.from_pretrained(folder), options)
    wanted = [PARTS["train"], augment(PARTS["train"], 3), PARTS["unlabelled"][1:]]  # the first tenth is held out
    expected = np.concatenate([stored_logits(large, part) for part in wanted])
    np.testing.assert_allclose(rows["teacher_logits"][:], expected, atol=1e-6)


def test_the_stored_logits_are_of_teachers_that_learned_from_their_students_sentences():
    profile = load_profile("minilm")
    for seed in range(3):
        stored = read_arrays(profile.teacher_file(seed))
        about, rows = json.loads(str(stored.pop("about"))), split_snippets(profile.data, seed)[0]
        assert about["data_fingerprint"] == fingerprint(rows)
        assert not about["provenance"]["dirty"]
        splits = dataset_dict(rows)
        texts = [*(texts for texts, _ in transfer_set(splits, seed, ["train", "unlabelled", "augmented"]))]
        texts.append(held_out(splits))
        assert {digest(list(part)): len(part) for part in texts} == {key: len(part) for key, part in stored.items()}
        right = stored[digest(list(texts[0]))].argmax(-1) == [label for _, label in rows["train"]]
        assert right.mean() > 0.95, "a teacher knows most labels of the sentences that it was trained on"


@pytest.mark.slow
def test_the_stored_logits_equal_those_of_the_teacher_that_is_built_here():
    """A sample of each part; the batches are others than those of the file, hence the tolerance."""
    profile = load_profile("base")
    built = [n for n in range(10) if (profile.variant_folder(profile.baseline, n) / "artifact.json").exists()]
    if not built:
        pytest.skip("no teacher is built; run: make teacher PROFILE=base")
    for seed in built:
        stored, splits = read_arrays(logits_file("base", seed)), load_splits(profile, seed)
        parts = [texts for texts, _ in transfer_set(splits, seed, ["train", "augmented", "unlabelled"])]
        folder = profile.variant_folder(profile.baseline, seed)
        predictor, tokenizer = load(folder, "cpu", 1), load_tokenizer(folder, profile.data.max_length)
        for texts in [*parts, held_out(splits)]:
            chosen = random.Random(seed).sample(range(len(texts)), 20)
            expected = predict(predictor, token_ids(tokenizer, [texts[i] for i in chosen]))
            np.testing.assert_allclose(stored[digest(list(texts))][chosen], expected, rtol=2e-3, atol=2e-3)


def test_a_student_may_start_from_the_profiles_smaller_encoder(large, teacher, folder, tmp_path):
    encoder = large.profile.encoder_folder("student_backbone")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    small = BertConfig(**teacher.config.to_dict() | sizes)
    torch.manual_seed(5)
    BertModel(small).save_pretrained(encoder)
    context = SimpleNamespace(profile=large.profile, seed=0, labels=["no", "yes"], parent=tmp_path / "parent")
    source, tokenizer = larger_network("encoder", context)
    assert tokenizer == encoder
    student = make_student(source, Student(layers=[1]), "encoder", 0)
    layer = source.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(student.bert.encoder.layer[0].output.dense.weight, layer)


def test_frozen_embeddings_do_not_change(learn, teacher):
    shape = Student(layers=[0, 2], hidden_size=16, intermediate_size=24, heads=2)
    start = make_student(teacher, shape, "parent", 0).bert.embeddings.state_dict()
    for frozen in (True, False):
        trained = learn(f"{frozen}", freeze_embeddings=frozen).bert.embeddings.state_dict()
        assert all(torch.equal(value, start[name]) == frozen for name, value in trained.items() if "weight" in name)


def test_without_dropout_the_training_mode_changes_no_logits(teacher):
    student = make_student(teacher, Student(layers=[0, 2]), "parent", 0)
    config, used = student.config.to_dict(), logits(student, batch())
    student.train()
    assert not torch.equal(logits(student, batch()), used), "this model has no dropout to set"
    set_dropout(student, 0.0)
    torch.testing.assert_close(logits(student, batch()), used)
    assert student.config.to_dict() == config, "what is saved must keep its own"


@given(st.lists(st.lists(st.sampled_from("abcd")).map("  ".join) | st.text()), st.integers(0, 9))
def test_augmentation_keeps_a_run_of_at_least_half_the_words(texts, seed):
    copies = augment(texts, seed)
    assert copies == augment(texts, seed)
    assert len(copies) == len(texts)
    for text, copy in zip(texts, copies, strict=True):
        words, kept = text.split(), copy.split()
        assert len(kept) >= min(len(words), max(3, len(words) / 2))
        assert any(words[i : i + len(kept)] == kept for i in range(len(words) + 1))


def test_augmentation_depends_on_the_seed_and_reaches_all_lengths():
    text = " ".join(map(str, range(10)))
    copies = [augment([text], seed)[0] for seed in range(200)]
    assert {len(copy.split()) for copy in copies} == set(range(5, 11))
    assert {copy.split()[0] for copy in copies} == set("012345")


def test_the_transfer_set_holds_labels_for_the_training_part_only():
    splits = {
        "train": Dataset.from_dict({"text": ["a b c d e f", "g h"], "label": [0, 1]}),
        "unlabelled": Dataset.from_dict({"text": [*map(str, range(20_000))], "label": [-1] * 20_000}),
    }
    assert transfer_set(splits, 0, ["train"]) == [(["a b c d e f", "g h"], [0, 1])]
    augmented, unlabelled = transfer_set(splits, 0, ["augmented", "unlabelled"])
    assert augmented == (augment(["a b c d e f", "g h"], 0), [-1, -1])
    assert unlabelled == ([*map(str, range(1000, 20_000))], [-1] * 19_000)
    assert held_out(splits) == [*map(str, range(1000))]
    few = splits | {"unlabelled": splits["unlabelled"].select(range(20))}
    assert held_out(few) == ["0", "1"]
    assert held_out({"train": splits["train"]}) == []


@pytest.fixture(scope="module")
def trimmed(folder, tmp_path_factory):
    """(old tokenizer, trimmed tokenizer, kept old ids, the trimmed one's folder)."""
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    counts = [count_pieces(old, TEXTS[:1]), count_pieces(old, TEXTS[1:])]
    kept = choose_pieces(old, counts, 5 + 2 * len(CHARACTERS) + 7)
    path = tmp_path_factory.mktemp("trimmed") / "tokenizer"
    write_trimmed(folder, path, kept)
    return old, Tokenizer.from_file(str(path / "tokenizer.json")), kept, path


def test_specials_characters_and_the_most_frequent_pieces_are_kept(trimmed):
    old, new, kept, _ = trimmed
    pieces = [old.id_to_token(i) for i in kept]
    assert [new.id_to_token(i) for i in range(len(kept))] == pieces
    assert kept == sorted(kept)
    assert pieces[0] == "[PAD]"
    longer = {p for p in pieces if len(p.removeprefix("##")) > 1} - {"[PAD]", *SPECIALS}
    # All of the first text's, then those that are twice in the others, then one of those that are there once.
    assert longer > {"good", "film", "great", "story", "the", "of"}
    assert len(longer) == 7
    assert "[unused0]" not in longer


def test_unused_pieces_are_left_out_and_a_size_that_is_too_small_is_refused(trimmed):
    old = trimmed[0]
    counts = [count_pieces(old, ["dull dull film"])]
    pieces = {old.id_to_token(i) for i in choose_pieces(old, counts, 1000)}
    assert {p for p in pieces if len(p.removeprefix("##")) > 1} == {"[PAD]", *SPECIALS, "dull", "film"}
    with pytest.raises(UserError, match=f"10 pieces are too few.*{5 + 2 * len(CHARACTERS)}"):
        choose_pieces(old, counts, 10)


def check_same_unknowns(old, new, kept, text):
    before, after = old.encode(text), new.encode(text)
    unknown = [[o for o, t in zip(e.offsets, e.tokens, strict=True) if t == "[UNK]"] for e in (before, after)]
    assert unknown[0] == unknown[1]
    if set(before.ids) <= set(kept):
        assert before.tokens == after.tokens
        assert [kept[i] for i in after.ids] == before.ids
    spelled = ["".join(t.removeprefix("##") for t in e.tokens) for e in (before, after)]
    assert spelled[0] == spelled[1]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.text() | st.text(CHARACTERS + " Ωß\U0001f600") | st.lists(st.sampled_from(WORDS + SPECIALS)).map(" ".join))
def test_trimming_adds_no_unknown_words_to_any_text(trimmed, text):
    check_same_unknowns(*trimmed[:3], text)


def test_the_auto_class_reads_the_trimmed_tokenizer(trimmed):
    _, new, kept, path = trimmed
    auto = AutoTokenizer.from_pretrained(path)
    assert auto.is_fast
    assert len(auto) == auto.vocab_size == len(kept)
    for text in [*TEXTS, "Ωnbelievable ☃ [MASK] film"]:
        assert auto(text)["input_ids"] == new.encode(text).ids
    assert (auto.pad_token_id, auto.unk_token_id) == (0, new.token_to_id("[UNK]"))
    assert new.encode("a").tokens == ["[CLS]", "a", "[SEP]"]


def test_a_trimmed_model_has_the_same_logits_on_kept_pieces(trimmed, teacher, tmp_path):
    old, new, kept, _ = trimmed
    model = make_student(teacher, Student(layers=[0, 1, 2, 3]), "parent", 0)
    trim_embeddings(model, kept)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert (reloaded.config.vocab_size, reloaded.config.pad_token_id) == (len(kept), 0)
    ids = [torch.tensor([tokenizer.encode(TEXTS[0]).ids]) for tokenizer in (old, new)]
    assert torch.equal(logits(teacher, {"input_ids": ids[0]}), logits(reloaded, {"input_ids": ids[1]}))


STUDENT = {"layers": [0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"layers": []}}, "student.layers"),
        ({"student": {"layers": [-1]}}, "student.layers"),
        ({"student": STUDENT | {"hidden_size": 20, "heads": 3}}, "not a multiple"),
        ({"student": STUDENT | {"vocabulary": 99}, "hidden_weight": 1.0}, "must be 0"),
        ({"student": STUDENT | {"vocabulary": 99}, "relation_weight": 0.5}, "must be 0"),
        ({"training": {"transfer": ["train", "train"]}}, "lists a part twice"),
        ({"training": {"transfer": ["test"]}}, "transfer"),
        ({"training": {"transfer": []}}, "transfer"),
        ({"hidden_weight": -1.0}, "hidden_weight"),
        ({"initialization": "encoder", "hidden_weight": 1.0}, "the encoder's word pieces"),
        ({"training": {"teacher": "large", "soft_weight": 0.0}}, "teacher: has no effect"),
        (
            {"training": {"transfer": ["train", "unlabelled"], "soft_weight": 0.0}},
            "only train has labels",
        ),
    ],
)
def test_contradictory_distillation_options_are_refused(changes, message):
    fine = {"name": "d", "method": "distill", "parent": "p", "student": STUDENT}
    fine |= {"training": {"epochs": 1.0, "learning_rate": 1e-3}}
    Distill.model_validate(fine)
    changes = changes | ({"training": fine["training"] | changes["training"]} if "training" in changes else {})
    with pytest.raises(ValueError, match=message):
        Distill.model_validate(fine | changes)


def test_inner_losses_need_a_common_vocabulary(teacher):
    student = make_student(teacher, Student(layers=[0]), "parent", 0)
    with inner_losses(student, teacher, 1.0, 1.0) as extra_loss:
        assert extra_loss is not None
    trim_embeddings(student, list(range(50)))
    with inner_losses(student, teacher, 0.0, 0.0) as extra_loss:
        assert extra_loss is None
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        with pytest.raises(UserError, match="other word pieces"), inner_losses(student, teacher, *weights):
            pass


@pytest.mark.parametrize(("profile", "controls"), [("minilm", 4), ("bert-base", 1)])
def test_controls_differ_from_their_student_only_in_what_they_control(profile, controls):
    variants = {v.name: v for v in load_profile(profile).variants if v.method == "distill"}
    compared = 0
    for name, control in variants.items():
        student = variants.get(name.removesuffix("-scratch").removesuffix("-labels"))
        if student is None or student is control:
            continue
        compared += 1
        assert control.student == student.student
        assert not control.timed
        if name.endswith("-scratch"):
            learning = student.training.model_copy(update={"freeze_embeddings": False})  # random ones must learn
            changed = {"name": name, "scope": control.scope, "timed": False}
            changed |= {"initialization": "random", "training": learning}
            assert control == student.model_copy(update=changed)
        else:
            assert control.training.soft_weight == control.hidden_weight == control.relation_weight == 0
            assert control.initialization == student.initialization
            own = {"teacher", "soft_weight", "transfer", "epochs"}
            assert control.training.model_dump(exclude=own) == student.training.model_dump(exclude=own)
    assert compared == controls
