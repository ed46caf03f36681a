"""Encoders of other people: one message from `make data` for each that is incomplete, damaged or contradictory."""

import json

import pytest
import torch
from compress.config.budgets import Measure
from compress.config.profile import Profile
from compress.config.sources import Backbone
from compress.config.variants import METHODS
from compress.data.backbone import save_backbone
from compress.data.prepare import prepare
from compress.errors import UserError
from compress.methods.teaching import classifier
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "bad", "film", "plot", "the", "was"]
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n"


def encoder(folder, words=WORDS, **about):
    """A tiny random BERT in the hub's format."""
    folder.mkdir(parents=True)
    vocabulary = [*SPECIAL, *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **SIZES, **about)
    BertModel(config).save_pretrained(folder)
    return folder


def saved(source, target, **about):
    """What make data writes of the encoder in `source`."""
    save_backbone(Backbone(path=str(source), **about), target, classes=2, max_length=16)
    return target


def rename(keys):
    """An edit of an encoder's weights by a function of their dict."""

    def edit(folder):
        tensors = keys(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def configure(**changes):
    def edit(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8")) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}), "utf-8")

    return edit


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def replace(name, content):
    return lambda folder: (folder / name).write_text(content, "utf-8")


def halve(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def old_layout(folder):
    """As sentence-transformers wrote it in 2019: the encoder in a folder of its own."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inner / file.name)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16}')
    (folder / "modules.json").write_text("[]")


def one_more_piece(folder):
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["film-noir"])
    tokenizer.save_pretrained(folder)


def no_unknown_piece(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("good\n")


LAST = "encoder.layer.1."
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            rename(lambda t: {f"module.{key}": value for key, value in t.items()}),
            r"(?s)missing: embeddings\.LayerNorm\.bias.*not in config\.json: module\.embeddings\.LayerNorm.*\(39\)",
        ),
        (
            rename(lambda t: {key: value for key, value in t.items() if LAST not in key}),
            r"missing: encoder\.layer\.1\.attention\.output\.LayerNorm\.bias.*\(16\)",
        ),
        (configure(num_hidden_layers=3), r"missing: encoder\.layer\.2\.attention\.output\.LayerNorm\.bias.*\(16\)"),
        (configure(num_hidden_layers=1), r"not in config\.json: encoder\.layer\.1\.attention.*\(16\)"),
        (configure(hidden_size=32), r"of another shape: embeddings\.LayerNorm\.bias \(config\.json: \(32,\)\)"),
        (
            configure(vocab_size=10),
            r"of another shape: embeddings\.word_embeddings\.weight \(config\.json: \(10, 16\)\)",
        ),
        (
            configure(hidden_size=17),
            r"weights: not readable: .*\(17\) is not a multiple of the number of attention heads",
        ),
        (configure(model_type=...), r"config\.json: model_type is None; supported are bert, "),
        (configure(model_type="t5"), r"config\.json: model_type is 't5'; supported are bert, "),
        (replace("config.json", '{"model_type": "bert",'), r"config\.json: not readable: "),
        (replace("config.json", "[]"), r"config\.json: not readable: "),
        (halve, r"the weights: not readable: .*incomplete metadata"),
        (
            replace("model.safetensors", POINTER),
            r"model\.safetensors: a Git LFS pointer instead .* git lfs pull",
        ),
        (replace("vocab.txt", POINTER), r"vocab\.txt: a Git LFS pointer"),
        (without("config.json"), r"no config\.json; it has: model\.safetensors, special_tokens_map\.json"),
        (without("model.safetensors"), r"no weights \(model\.safetensors\); it has: config\.json"),
        (
            without("tokenizer.json", "vocab.txt"),
            r"no tokenizer \(tokenizer\.json or vocab\.txt\); it has: config\.json",
        ),
        (replace("tokenizer.json", "{}"), r"the tokenizer: not readable: "),
        (no_unknown_piece, r"the tokenizer: not readable: .*Missing \[UNK\] token"),
        (one_more_piece, r"the tokenizer has 12 pieces, but the embedding only 11 rows"),
        (old_layout, r"no config\.json; name the folder .*/0_Transformer instead"),
    ],
)
def test_an_encoder_that_does_not_fit_itself_is_one_message(tmp_path, edit, message):
    folder = encoder(tmp_path / "encoder")
    edit(folder)
    with pytest.raises(UserError, match=message) as caught:
        saved(folder, tmp_path / "saved")
    assert str(caught.value).startswith(str(folder))
    assert not list((tmp_path / "saved").iterdir())


def test_a_path_to_a_file_says_which_folder_is_meant(tmp_path):
    file = encoder(tmp_path / "encoder") / "model.safetensors"
    with pytest.raises(UserError, match=r"model\.safetensors: not a folder; name the one that contains config\.json"):
        saved(file, tmp_path / "saved")


def test_weights_with_the_prefix_of_a_classifier_and_a_head_are_read(tmp_path):
    folder = encoder(tmp_path / "encoder")
    expected = load_file(folder / "model.safetensors")
    rename(lambda t: {f"bert.{key}": value for key, value in t.items()} | {"classifier.bias": torch.zeros(3)})(folder)
    actual = load_file(saved(folder, tmp_path / "saved") / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_a_missing_pooler_is_drawn_from_the_seed_of_the_training_alone(tmp_path):
    folder = encoder(tmp_path / "encoder")
    rename(lambda t: {key: value for key, value in t.items() if "pooler" not in key})(folder)
    first, second = (saved(folder, tmp_path / name) / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert not [key for key in load_file(first) if "pooler" in key]
    models = [classifier(tmp_path / "first", ["a", "b"], seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    different = {key for key in models[0] if not torch.equal(models[0][key], models[2][key])}
    assert different == {"bert.pooler.dense.weight", "classifier.weight"}


def test_an_encoder_of_random_weights_needs_no_weights(tmp_path):
    folder = encoder(tmp_path / "encoder")
    without("model.safetensors")(folder)
    target = saved(folder, tmp_path / "saved", random_config={"num_hidden_layers": 1})
    assert len([key for key in load_file(target / "model.safetensors") if key.startswith("encoder.")]) == 16


def test_the_settings_of_an_earlier_task_are_not_inherited(tmp_path):
    about = {"problem_type": "multi_label_classification", "output_hidden_states": True, "return_dict": False}
    folder = encoder(tmp_path / "encoder", id2label=dict(enumerate("abcd")), **about)
    model = classifier(saved(folder, tmp_path / "saved"), ["good", "bad"], seed=0)
    ids = torch.tensor([[2, 5, 3]])
    outputs = model(input_ids=ids, labels=torch.tensor([1]))
    assert model.config.problem_type == "single_label_classification"
    assert outputs.hidden_states is None
    assert outputs.logits.shape == (1, 2)


def test_a_vocabulary_alone_with_capitals_needs_a_word_on_lowercasing(tmp_path):
    cased, uncased = (encoder(tmp_path / name, words) for name, words in (("c", [*WORDS, "Berlin"]), ("u", WORDS)))
    for folder in (cased, uncased):
        without("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")(folder)
    saved(uncased, tmp_path / "saved-u")
    with pytest.raises(UserError, match=r"vocab\.txt has pieces with capitals \(Berlin\).*\"do_lower_case\": false"):
        saved(cased, tmp_path / "saved-c")
    replace("tokenizer_config.json", '{"do_lower_case": false}')(cased)
    tokenizer = BertTokenizerFast.from_pretrained(saved(cased, tmp_path / "saved-c2"))
    assert tokenizer.tokenize("Berlin") == ["Berlin"]


def own_profile(folder, *variants, **backbone):
    """A profile with 40 sentences, in each of which the encoder's tokenizer doesn't know one word of four."""
    (folder / "a.csv").write_text("text,label\n" + "".join(f"the film was good{i},{'ab'[i % 2]}\n" for i in range(40)))
    data = {"path": str(folder / "a.csv"), "validation": 10, "test": 10, "max_length": 16}
    about = {"name": "own", "description": "-", "baseline": "bert-orig", "data": data, "backbone": backbone}
    listed = [{"name": "bert-orig", "method": "untrained"}, *variants]
    return Profile.model_validate(about | {"variants": [METHODS[of["method"]].model_validate(of) for of in listed]})


def test_shapes_longer_than_the_encoder_are_refused_before_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    profile = own_profile(tmp_path, path=str(encoder(tmp_path / "encoder")))
    shapes = Measure.model_validate({"shapes": {"variants": ["bert-orig"], "lengths": [16, 64]}})
    with pytest.raises(
        UserError, match=r"encoder: it has only 32 positions, but the profile needs 64: .*shapes\.lengths"
    ):
        prepare(profile.model_copy(update={"measure": shapes}), [0])


@pytest.mark.parametrize("lowercases", [True, False])
def test_the_data_card_shows_lowercasing_and_unknown_pieces(tmp_path, monkeypatch, lowercases):
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    folder = encoder(tmp_path / "encoder")
    without("tokenizer.json")(folder)
    replace("tokenizer_config.json", json.dumps({"do_lower_case": lowercases}))(folder)
    card = prepare(own_profile(tmp_path, path=str(folder)), [0])[0]
    assert card["tokenizer"] == {"pieces": 11, "lowercases": lowercases, "unknown": "[UNK]"}
    assert card["splits"]["train"]["unknown_share"] == round(1 / 6, 4)  # [CLS] the film was [UNK] [SEP]


def test_preparing_data_twice_leaves_the_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    folder = encoder(tmp_path / "encoder")
    rename(lambda t: {key: value for key, value in t.items() if "pooler" not in key})(folder)
    own = own_profile(tmp_path, path=str(folder))
    prepare(own, [0])
    before = (own.data_folder(0) / "data.json").stat().st_ino
    prepare(own, [0])
    assert (own.data_folder(0) / "data.json").stat().st_ino == before
