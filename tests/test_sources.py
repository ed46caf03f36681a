"""Data and encoders from local files and from the hub's cache: the whole graph on them, and the errors of bad ones."""

import csv
import http.server
import json
import random
import re
import threading
import time

import pytest
import torch
import transformers
from compress.config.profile import Profile, load_profile
from compress.config.sources import Data
from compress.config.variants import Untrained
from compress.data.prepare import prepare
from compress.data.tabular import read_tables
from compress.errors import UserError
from conftest import ROOT, copy_repository, read_csv, run
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import constants
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

GOOD, BAD = ["good", "great", "fine", "lovely", "superb"], ["bad", "awful", "poor", "dull", "dreadful"]
WORDS = ["the", "film", "plot", "cast", "score", "scene", "was", "felt", "looked", "very", "rather", "quite", "so"]
HUB = load_profile("bert-base")
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def sentences(classes, count, seed=0):
    """Distinct (text, class) rows; one word determines the class."""
    chance, rows = random.Random(seed), {}
    while len(rows) < count:
        label = len(rows) % len(classes)
        words = [chance.choice(WORDS) for _ in range(chance.randint(4, 12))]
        words.insert(chance.randrange(len(words)), chance.choice(classes[label]))
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def save_encoder(folder, kind, **sizes):
    """A tiny random encoder with a tokenizer trained on a few words, as save_pretrained lays them out."""
    bert, roberta = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
    cls, sep, pad, unk, mask = special = roberta if kind in ("roberta", "mpnet") else bert
    if kind == "roberta":
        tokenizer = Tokenizer(models.BPE(unk_token=unk))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[cls, pad, sep, unk, mask])
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        order = [cls, pad, sep, unk, mask] if kind == "mpnet" else [pad, unk, cls, sep, mask]
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=order)
    tokenizer.train_from_iterator([" ".join([*GOOD, *BAD, *WORDS])], trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=ids
    )
    keys = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(keys, special, strict=True)))
    fast.save_pretrained(folder)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=len(fast), pad_token_id=fast.pad_token_id, max_position_embeddings=160, **sizes
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def parquet(file, features, columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(str(file))


def sst2(folder):
    """Files like SST-2's on the hub: columns idx, sentence, label, and a test split whose labels are all -1."""
    features = {"idx": Value("int32"), "sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])}
    rows = sentences([BAD, GOOD], 2000)
    for split, part in (("train", rows[:1400]), ("validation", rows[1400:1700]), ("test", rows[1700:])):
        labels = [-1 if split == "test" else label for _, label in part]
        columns = {"idx": list(range(len(part))), "sentence": [text for text, _ in part], "label": labels}
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", features, columns)
    return folder


def hub_cache(home):
    """A hub cache under `home` with the two repositories of the profile bert-base; the encoder is tiny."""
    for kind, repository, fill in (("models", HUB.backbone.hub, tiny_bert_base), ("datasets", HUB.data.hub, sst2)):
        name, commit = repository.split("@")
        fill(home / "hub" / f"{kind}--{name.replace('/', '--')}" / "snapshots" / commit)


def tiny_bert_base(folder):
    """An encoder with BERT base's twelve layers and FFN width, which the profile needs, and small otherwise."""
    sizes = {"hidden_size": 24, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
    return save_encoder(folder, "bert", **sizes)


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """(a copy of the repository, environment variables for a machine with the hub's files and without a network)."""
    home = tmp_path_factory.mktemp("hf")
    hub_cache(home)
    folder = copy_repository(tmp_path_factory.mktemp("hub"))
    return folder, OFFLINE | {"HF_HOME": str(home)}


def rows_of(folder, profile):
    return {row["variant"]: row for row in read_csv(folder / "results" / profile / "variants.csv")}


def test_data_from_the_hubs_cache_become_splits_without_a_network(hub):
    folder, environment = hub
    done = run(folder, "make", "data", "PROFILE=bert-base", **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads((folder / "build/bert-base/data/seed0/data.json").read_text("utf-8"))
    assert card["labels"] == ["negative", "positive"]
    assert card["source"] == HUB.data.hub
    sizes = {name: split["sentences"] for name, split in card["splits"].items()}
    # The labelled validation split becomes the test split; validation is held out of train.
    assert sizes == {"train": 400, "validation": 1000, "test": 300, "unlabelled": 300}
    assert set(card["splits"]["unlabelled"]["class_share"]) == {"-1"}


@pytest.mark.slow
def test_the_whole_graph_of_bert_base_runs_without_a_network(hub):
    folder, environment = hub
    profile = folder / "scripts/profiles/bert-base.toml"
    text = profile.read_text("utf-8")
    brief_load = "load = { saturation_seconds = 1.0, rates = [0.5], responses = 50, repeats = 1 }"
    for before, after in (
        # With random weights, pruning empties whole matrices, which leaves nothing to cluster.
        ('"deep-compression"\nparent = "prune-fisher-70"', '"deep-compression"\nparent = "finetuned"'),
        ("latency_calls = 200\n", "latency_calls = 20\n"),
        ("[serving]\n", f"[serving]\n{brief_load}\n"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    profile.write_text(text, "utf-8")
    done = run(folder, "make", "all", "PROFILE=bert-base", "SCOPE=full", timeout=3600, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = rows_of(folder, "bert-base")
    assert set(rows) == {variant.name for variant in HUB.variants}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "SST-2" in (folder / "report/bert-base/report.md").read_text("utf-8")


def test_a_split_without_labels_like_imdbs_has_texts_only(tmp_path):
    features = {"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])}
    rows = sentences([BAD, GOOD], 90)
    files = "".join(f"  - split: {s}\n    path: plain_text/{s}-*\n" for s in ("train", "test", "unsupervised"))
    card = f"---\nconfigs:\n- config_name: plain_text\n  data_files:\n{files}  default: true\n---\n# IMDB\n"
    (tmp_path / "README.md").write_text(card, "utf-8")
    for split, part in (("train", rows[:40]), ("test", rows[40:60]), ("unsupervised", rows[60:])):
        labels = [-1 if split == "unsupervised" else label for _, label in part]
        columns = {"text": [text for text, _ in part], "label": labels}
        parquet(tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet", features, columns)
    tables, names = read_tables(Data(path=str(tmp_path)))
    assert names == ["neg", "pos"]
    assert tables["train"] == [(text, names[label]) for text, label in rows[:40]]
    assert {label for _, label in tables["unsupervised"]} == {None}


def documented_profile() -> str:
    """The profile that the documentation shows for one's own data and encoder."""
    pages = [file.read_text("utf-8") for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    return re.search(r"```toml\n(# scripts/profiles/mine\.toml\n.*?)```", "\n".join(pages), re.DOTALL)[1]


MORE = """
half = { method = "structured", parent = "finetuned", heads = 0.5, intermediate_size = 16 }
student = { method = "distill", parent = "finetuned", student.layers = [0], \
training = { epochs = 0.2, learning_rate = 1e-3 } }
trimmed = { method = "trim", parent = "finetuned", vocabulary = 300 }
ov-int8 = { method = "openvino", parent = "finetuned", compression = "int8" }
optimum-int8 = { method = "optimum-intel", parent = "finetuned", quantization = "int8", counterpart = "ov-int8" }
half-o2 = { method = "optimum-onnx", parent = "half", level = "O2", counterpart = "ort-int8" }
"""


def test_the_documented_profile_is_valid(monkeypatch, tmp_path):
    monkeypatch.setattr("compress.config.profile.PROFILES", tmp_path)
    (tmp_path / "mine.toml").write_text(documented_profile() + MORE, "utf-8")
    profile = load_profile("mine")
    assert {"finetuned", "half", "student", "trimmed", "ov-int8"} <= {v.name for v in profile.in_scope("core")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["roberta", "distilbert", "mpnet"])
def test_a_report_on_a_csv_file_of_three_classes_and_an_encoder_in_a_folder(tmp_path, kind):
    folder = copy_repository(tmp_path)
    (folder / "scripts/profiles/mine.toml").write_text(documented_profile() + MORE, "utf-8")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 64}
    save_encoder(folder / "my-encoder", kind, **sizes)
    names = ["awful", "so-so", "great"]
    with open(folder / "reviews.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "stars"])
        rows = sentences([BAD, WORDS, GOOD], 1500)
        writer.writerows([i, text, names[label]] for i, (text, label) in enumerate(rows))
    done = run(folder, "make", "all", "PROFILE=mine", **OFFLINE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = rows_of(folder, "mine")
    skipped = {"roberta": {"trimmed"}, "distilbert": {"half", "student", "half-o2"}, "mpnet": {"half-o2"}}[kind]
    assert {name for name, row in rows.items() if row["status"] != "ok"} == skipped
    assert float(rows["finetuned"]["f1_test"]) == float(rows["finetuned"]["f1_macro_test"])
    card = json.loads((folder / "build/mine/data/seed0/data.json").read_text("utf-8"))
    assert card["labels"] == sorted(names)
    report = (folder / "report/mine/report.md").read_text("utf-8")
    assert "macro" in report
    command = ("scripts/predict.py", "--model", "build/mine/seed0/ort-int8", "so good")
    done = run(folder, ".venv/bin/python", *command)
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout for name in names)


def own_data(folder, **about):
    backbone = load_profile("smoke").backbone.model_dump(mode="python")
    about = {"validation": 10, "test": 10, "path": str(folder / "a.csv")} | about
    variants = [Untrained(name="bert-orig", method="untrained")]
    profile = {"name": "own", "description": "-", "baseline": "bert-orig", "data": about}
    return Profile.model_validate(profile | {"backbone": backbone, "variants": variants})


class Hub(http.server.BaseHTTPRequestHandler):
    """A server like the hub; `reply` is the status and the hub's own error code, or None for no response."""

    reply: tuple[int, str] | None

    def do_GET(self):
        if self.reply is None:
            time.sleep(60)
            return
        self.send_response(self.reply[0])
        self.send_header("X-Error-Code", self.reply[1])
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((403, "GatedRepo"), "it is gated"),
        ((404, "RevisionNotFound"), "it has no revision 8d51e7e4"),
        ((401, "RepoNotFound"), "no such repository"),
        (None, "the hub can't be reached"),
        ("closed", "the hub can't be reached"),
    ],
)
def test_errors_of_the_hub_are_reported_within_thirty_seconds(tmp_path, monkeypatch, reply, message):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Replying", (Hub,), {"reply": reply}))
    server.daemon_threads = True
    if reply == "closed":
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        prepare(HUB, [0])
    assert time.monotonic() - started < 30
    assert "hf download --repo-type dataset stanfordnlp/sst2" in str(caught.value)
    assert not (tmp_path / "build").exists()
    if reply != "closed":
        server.shutdown()
