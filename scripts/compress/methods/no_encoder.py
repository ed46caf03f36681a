"""Classifiers without an encoder: tf-idf with logistic regression, and static vectors distilled from a network."""

import time
from pathlib import Path

import numpy as np
import torch
from compress.engines.predictor import load_tokenizer, token_ids
from compress.engines.pytorch import load_model
from compress.engines.shallow import FILE, piece_ngrams
from compress.methods.made import Context, Made, made
from compress.methods.teaching import student_data
from compress.methods.training import train
from compress.methods.transfer import learning_data
from compress.methods.vocabulary import count_pieces
from compress.metrics import quality
from safetensors.numpy import save_file
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import AutoTokenizer, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

STRENGTHS = (3, 10, 30, 100, 300)  # scikit-learn's C: the inverse of the regularization
NEURONS = 128  # of the hidden layer
FREQUENT = 1e-3  # the paper's a: the relative frequency at which a piece has half its weight


def tfidf(variant, context: Context) -> Made:
    """Logistic regression on tf-idf of word pieces and their bigrams; C is the best by validation F1."""
    tokenizer = load_tokenizer(context.profile.backbone_folder, context.profile.data.max_length)
    train_ids, validation_ids = (
        token_ids(tokenizer, context.splits[name]["text"][:]) for name in ("train", "validation")
    )
    train_labels, validation_labels = (context.splits[name]["label"][:] for name in ("train", "validation"))
    began = time.perf_counter()
    vectorizer = TfidfVectorizer(analyzer=piece_ngrams, sublinear_tf=True)
    features, validation = vectorizer.fit_transform(train_ids), vectorizer.transform(validation_ids)
    models = [LogisticRegression(C=strength, max_iter=1000).fit(features, train_labels) for strength in STRENGTHS]
    best = max(models, key=lambda model: quality(model.predict_proba(validation), validation_labels)["f1"])
    learned = {"idf": vectorizer.idf_, "weight": best.coef_, "intercept": best.intercept_}
    # safetensors writes an array's memory without reordering, so the rows must be contiguous.
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in learned.items()}
    ngrams = vectorizer.get_feature_names_out().astype(np.int64)
    return Made(
        lambda folder: save_file(arrays | {"ngrams": ngrams}, folder / FILE),
        sum(array.size for array in arrays.values()),
        sum(int(np.count_nonzero(array)) for array in arrays.values()),
        backend="numpy",
        train_seconds=time.perf_counter() - began,
        details={"C": best.C},
    )


def static(variant, context: Context) -> Made:
    """A vector per word piece from the parent (Tulkens and van Dongen, Model2Vec, 2024), then trained with a head."""
    tokenizer = AutoTokenizer.from_pretrained(context.parent)
    encoder = load_model(context.parent).base_model.to(context.train_device)
    vectors = piece_vectors(encoder, tokenizer, variant.width) * piece_weights(context)[:, None]
    set_seed(context.seed)
    model = StaticClassifier(torch.from_numpy(vectors).float().contiguous(), len(context.labels))
    rows = student_data(context, tokenizer, variant.training)
    seconds = train(model, tokenizer, rows, variant.training, context)
    return made(model, model.write, backend="numpy", train_seconds=seconds, details={"rows": len(rows)})


@torch.inference_mode()
def piece_vectors(encoder: nn.Module, tokenizer, width: int) -> np.ndarray:
    """float [pieces, width]: the mean hidden state of each word piece as a text of its own, reduced by PCA."""
    pieces = [tokenizer.build_inputs_with_special_tokens([piece]) for piece in range(len(tokenizer))]
    hidden = []
    for ids in torch.tensor(pieces, device=encoder.device).split(512):
        hidden.append(encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1).cpu())
    return PCA(width, random_state=0).fit_transform(torch.cat(hidden).numpy())


def piece_weights(context: Context) -> np.ndarray:
    """float64 [pieces]: a / (a + p) for relative frequency p, less for frequent pieces (Arora et al., SIF, 2017)."""
    tokenizer = load_tokenizer(context.parent, context.profile.data.max_length)
    counts = sum(count_pieces(tokenizer, texts) for texts, _ in learning_data(context.splits).values())
    return FREQUENT / (FREQUENT + counts / counts.sum())


class StaticClassifier(nn.Module):
    """The mean of a text's vectors and a head with one hidden layer; the interface is that of transformers' models."""

    def __init__(self, vectors: torch.Tensor, classes: int):
        """vectors: float32 [pieces, width]."""
        super().__init__()
        self.vectors = nn.Embedding.from_pretrained(vectors, freeze=False)
        self.hidden = nn.Linear(vectors.shape[1], NEURONS)
        self.output = nn.Linear(NEURONS, classes)

    def forward(self, input_ids, attention_mask, labels=None) -> SequenceClassifierOutput:
        """int64 [batch, length] twice, and the labels int64 [batch] for a loss."""
        mask = attention_mask[..., None]
        means = (self.vectors(input_ids) * mask).sum(1) / mask.sum(1)
        logits = self.output(self.hidden(means).relu())
        return SequenceClassifierOutput(
            loss=None if labels is None else nn.functional.cross_entropy(logits, labels), logits=logits
        )

    def write(self, folder: Path) -> None:
        """Writes the arrays of StaticPredictor; the vectors as float16, which is what model2vec stores."""
        arrays = {
            "vectors": self.vectors.weight.half(),
            "hidden_weight": self.hidden.weight,
            "hidden_bias": self.hidden.bias,
            "weight": self.output.weight,
            "bias": self.output.bias,
        }
        save_file({name: array.detach().numpy() for name, array in arrays.items()}, folder / FILE)
