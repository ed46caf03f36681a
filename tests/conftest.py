"""A fresh copy of the repository on which the smoke profile has been run once, as a user would."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from compress.config.profile import load_profile
from compress.cpu import lacks_vnni
from compress.errors import UserError
from compress.paths import PROFILES
from compress.storage.artifact import save_artifact
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads crawl on a busy machine
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
ROOT = Path(__file__).resolve().parents[1]
SAFE_BITS = 7 if lacks_vnni() else 8  # products of more bits overflow on such a CPU, as the docs say
WORDS = ["a", "the", "film", "play", "story", "that", "was", "is", "not", "good", "bad", "dull", "bright", "slow"]


def run(folder: Path, *command: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=timeout
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save_model(folder: Path, write, tokenizer: Path, **about):
    """An artifact, whose facts are made up unless they are given."""
    facts = {"variant": folder.name, "method": "finetune", "parent": None, "backend": "torch", "labels": ["no", "yes"]}
    facts |= {"parameters": 1, "nonzero_parameters": 1, "max_length": 16, "options": {}, "train_seconds": None}
    return save_artifact(folder, write, tokenizer, **facts | {"details": {}, "runtime": {}} | about)


def copy_repository(folder: Path) -> Path:
    """The tracked files as they are now, with links to the environment and to the verified archives."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    # The environment under test is the one that runs the tests.
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / ".venv" / ".installed").touch()
    (folder / "build").mkdir()
    downloads = ROOT / "build" / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    (folder / "build" / "downloads").symlink_to(downloads)
    return folder


def pytest_collection_modifyitems(items):
    """Tests of the smoke run come last: it runs in the background while the others do.

    Tests of the committed results are skipped where a run of one's own has changed them.
    """
    items.sort(key=lambda item: "smoke" in item.fixturenames)
    if has_own_results(ROOT):
        skip = pytest.mark.skip(reason="results/ is not as committed or staged; this test is about what is")
        for item in items:
            if item.get_closest_marker("committed"):
                item.add_marker(skip)


def has_own_results(folder: Path) -> bool:
    """Whether tracked files of results/ differ from what is committed or staged."""
    return run(folder, "git", "diff", "--quiet", "--", "results").returncode == 1


@pytest.fixture(scope="session", autouse=True)
def running_smoke(request, tmp_path_factory):
    """(folder, process) of a make smoke that has been started, if any test needs it."""
    if not any("smoke" in item.fixturenames for item in request.session.items):
        yield None
        return
    folder = copy_repository(tmp_path_factory.mktemp("clone"))
    with open(folder / "build" / "stdout", "w") as out, open(folder / "build" / "stderr", "w") as errors:
        process = subprocess.Popen(["make", "smoke"], cwd=folder, stdout=out, stderr=errors, start_new_session=True)
    yield folder, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.fixture(scope="session")
def smoke(running_smoke):
    """(folder, output of make smoke); later tests read it and leave it as they found it."""
    folder, process = running_smoke
    status = process.wait(timeout=1800)  # minutes on a quiet machine
    output, errors = ((folder / "build" / name).read_text("utf-8") for name in ("stdout", "stderr"))
    assert status == 0, output[-3000:] + errors[-3000:]
    return folder, output


@pytest.fixture
def copy(smoke, tmp_path):
    """The finished smoke run, to be changed."""
    return shutil.copytree(smoke[0], tmp_path / "copy", symlinks=True)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """A tiny fp32 ONNX classifier, so batch invariant, with a tokenizer of a few words."""
    import torch
    from compress.engines import ort
    from compress.methods.onnx_files import export_onnx
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("artifact")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: i for i, piece in enumerate([*special, *WORDS, *',.!"'])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, **sizes))
    about = {"backend": "onnxruntime", "max_length": 64, "runtime": {"precision": "fp32"}}
    save_model(folder / "tiny", lambda target: export_onnx(model.eval(), target / ort.FILE), folder, **about)
    return folder / "tiny"


@pytest.fixture
def error_of_profile(monkeypatch, tmp_path):
    """The error of a committed profile in which one text is replaced."""

    def load(name: str, old: str, new: str) -> str:
        text = (PROFILES / f"{name}.toml").read_text("utf-8")
        assert old in text
        (tmp_path / f"{name}.toml").write_text(text.replace(old, new, 1), "utf-8")
        monkeypatch.setattr("compress.config.profile.PROFILES", tmp_path)
        with pytest.raises(UserError) as caught:
            load_profile(name)
        assert f"{name}.toml: " in str(caught.value)
        return str(caught.value)

    return load


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium that logs what its console says."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-sync"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as started:
        yield started
