"""Classifiers without an encoder: tf-idf against scikit-learn, static vectors against the network and torch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compress.config.variants import Training
from compress.engines.predictor import load, load_tokenizer, predict, token_ids
from compress.engines.shallow import StaticPredictor
from compress.errors import UserError
from compress.methods.no_encoder import (
    FREQUENT,
    STRENGTHS,
    StaticClassifier,
    piece_vectors,
    piece_weights,
    static,
    tfidf,
)
from compress.metrics import softmax
from conftest import save_model
from scipy.spatial.distance import pdist
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizerFast

WORDS = ["good", "bad", "dull", "great", "film", "plot", "the", "of", "a", "not", "rare"]


def sentences(count, seed, words=WORDS[:-1]):
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(words, chance.integers(2, 12))) for _ in range(count)]


def labelled(texts, classes):
    """Labels that single words and a bigram decide, with noise."""
    noise = np.random.default_rng(9).integers(0, classes, len(texts))
    clear = [("good" in text) + ("not good" not in text and "great" in text) for text in texts]
    return [int(n if i % 5 == 0 else min(c, classes - 1)) for i, (c, n) in enumerate(zip(clear, noise, strict=True))]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A tiny BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("parent")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(folder / "vocab.txt").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(WORDS) + 5, initializer_range=0.5, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def context(parent, work, classes=2):
    splits = {name: {"text": sentences(count, count)} for name, count in (("train", 300), ("validation", 80))}
    for split in splits.values():
        split["label"] = labelled(split["text"], classes)
    profile = SimpleNamespace(backbone_folder=parent, data=SimpleNamespace(max_length=16))
    about = {"labels": ["a", "b", "c"][:classes], "seed": 0, "train_device": "cpu", "parent": parent, "work": work}
    return SimpleNamespace(profile=profile, splits=splits, **about)


def saved(made, method, parent, folder):
    """The folder of an artifact."""
    save_model(folder, made.write, parent, method=method, backend=made.backend, details=made.details)
    return folder


@pytest.mark.parametrize("classes", [2, 3])
def test_tfidf_equals_scikit_learns_own_ngrams(parent, tmp_path, classes):
    job = context(parent, tmp_path, classes)
    folder = saved(tfidf(None, job), "tfidf", parent, tmp_path / "x")
    tokenizer = load_tokenizer(parent, 16)

    def words(texts):  # ids as words, from which scikit-learn makes bigrams itself
        return [" ".join(map(str, ids)) for ids in token_ids(tokenizer, texts)]

    train, validation = (job.splits[name] for name in ("train", "validation"))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    features = vectorizer.fit_transform(words(train["text"]))
    models = [LogisticRegression(C=c, max_iter=1000).fit(features, train["label"]) for c in STRENGTHS]
    held_out = vectorizer.transform(words(validation["text"]))
    average = "binary" if classes == 2 else "macro"
    f1 = [f1_score(validation["label"], model.predict(held_out), average=average) for model in models]
    assert len(set(f1)) > 1, "C must make a difference"
    new = [*sentences(40, 7, WORDS), "rare", ""]
    expected = models[int(np.argmax(f1))].predict_proba(vectorizer.transform(words(new)))
    for size in (1, 5):
        logits = predict(load(folder), token_ids(tokenizer, new), size)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(softmax(logits), expected, atol=1e-6)


def test_a_text_without_known_ngrams_gets_the_intercept(parent, tmp_path):
    model = load(saved(tfidf(None, context(parent, tmp_path)), "tfidf", parent, tmp_path / "x"))
    logits = model(np.array([[WORDS.index("rare") + 5]]), np.array([[1]]))
    np.testing.assert_allclose(logits, [[0, model.intercept[0]]])


def test_piece_vectors_keep_the_distances_of_hidden_states(parent):
    encoder = BertForSequenceClassification.from_pretrained(parent).eval().base_model
    tokenizer = AutoTokenizer.from_pretrained(parent)
    with torch.no_grad():
        hidden = [encoder(torch.tensor([[2, piece, 3]])).last_hidden_state[0].mean(0) for piece in range(16)]
    distances = pdist(torch.stack(hidden).numpy())
    np.testing.assert_allclose(pdist(piece_vectors(encoder, tokenizer, 12)), distances, rtol=1e-3)
    assert (pdist(piece_vectors(encoder, tokenizer, 4)) <= distances * 1.001).all()  # a projection


def test_the_weight_of_a_piece_falls_with_its_frequency_outside_of_held_out_texts(parent, tmp_path):
    job = context(parent, tmp_path)
    unlabelled = ["rare", *["a good plot"] * 9]  # the first tenth is held out
    texts = {"train": ["good film", "good"], "unlabelled": unlabelled}
    job.splits = {name: {"text": rows, "label": [-1] * len(rows)} for name, rows in texts.items()}
    weights = piece_weights(job)
    total = 4 + 3 + 9 * 5  # with [CLS] and [SEP]
    assert weights[WORDS.index("good") + 5] == pytest.approx(FREQUENT / (FREQUENT + (2 + 9) / total))
    assert weights[WORDS.index("rare") + 5] == 1


def test_the_static_predictor_has_torchs_logits(tmp_path):
    torch.manual_seed(0)
    model = StaticClassifier(torch.randn(50, 8).half().float(), 3)
    model.write(tmp_path)
    ids, lengths = np.random.default_rng(0).integers(0, 50, (6, 9)), np.array([[9], [1], [4], [9], [2], [7]])
    mask = (np.arange(9) < lengths).astype(np.int64)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    folder = tmp_path / "x"
    made = SimpleNamespace(write=model.write, backend="numpy", details={})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    predictor = load(saved(made, "static", tmp_path, folder))
    assert isinstance(predictor, StaticPredictor)
    np.testing.assert_allclose(predictor(ids, mask), expected, atol=1e-5)
    with pytest.raises(UserError, match="runs on the CPU here, not on cuda"):
        load(folder, "cuda")


def test_static_vectors_and_their_head_are_trained(parent, tmp_path):
    job = context(parent, tmp_path / "work")
    job.splits["train"]["label"] = [int("good" in text) for text in job.splits["train"]["text"]]
    options = SimpleNamespace(width=8, training=Training(epochs=8.0, learning_rate=1e-2, soft_weight=0.0))
    made = static(options, job)
    assert made.parameters == 16 * 8 + (8 + 1) * 128 + (128 + 1) * 2
    predictor = load(saved(made, "static", parent, tmp_path / "x"))
    logits = predict(predictor, token_ids(load_tokenizer(parent, 16), job.splits["train"]["text"]), 16)
    assert f1_score(job.splits["train"]["label"], logits.argmax(1)) > 0.97
    again = static(options, SimpleNamespace(**vars(job) | {"work": tmp_path / "again"}))
    weights = [
        folder / "arrays.safetensors" for folder in (tmp_path / "x", saved(again, "static", parent, tmp_path / "y"))
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
