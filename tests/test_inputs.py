"""Bad input: every error names the file, the key or the field, and nothing half-made is left behind."""

import argparse
import errno
import json
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from compress.cli import main_guard
from compress.config.profile import Package, load_profile
from compress.data import archives
from compress.data import prepare as data
from compress.engines.predictor import batches, load
from compress.errors import UserError
from compress.files import atomic_path, digest, source_hash, write_json
from compress.methods.training import last_checkpoint
from compress.paths import PROFILES, SCRIPTS
from compress.stage import Stage
from compress.storage.artifact import read_artifact, save_artifact


@pytest.fixture
def profile_text(monkeypatch, tmp_path):
    """Writes a changed smoke profile where load_profile looks."""
    monkeypatch.setattr("compress.config.profile.PROFILES", tmp_path)

    def write(old: str, new: str) -> None:
        text = (PROFILES / "smoke.toml").read_text("utf-8")
        assert old in text
        (tmp_path / "smoke.toml").write_text(text.replace(old, new, 1), "utf-8")

    return write


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("validation = 64", "validation = 64\nvalidashun = 1", "data.validashun"),
        ("validation = 64", 'validation = "64"', "data.validation"),
        ("test = 128", "test = -1", "data.test"),
        ("epochs = 2.0, ", "", "training.epochs"),
        ('method = "finetune"', 'method = "fintune"', "variants"),
        ('baseline = "finetuned"', 'baseline = "other"', "baseline"),
        ('name = "bert-orig"', 'name = "finetuned"', "finetuned"),
        ('name = "smoke"', 'name = "smoke', "TOML"),
    ],
)
def test_a_wrong_profile_names_file_and_key(profile_text, old, new, key):
    profile_text(old, new)
    with pytest.raises(UserError) as caught:
        load_profile("smoke")
    assert "smoke.toml" in str(caught.value)
    assert key in str(caught.value)


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(UserError, match=r"nonsense.*minilm, smoke"):
        load_profile("nonsense")


def test_a_wrong_checksum_removes_the_file_and_prints_both(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "DOWNLOADS", tmp_path)
    (tmp_path / "a-1.zip").write_bytes(b"not it")
    with pytest.raises(UserError, match=f"(?s)expected SHA-256 {'0' * 64}.*found .*[0-9a-f]{{64}}"):
        archives.fetch(Package(requirement="a==1", file="a-1.zip", sha256="0" * 64))
    assert list(tmp_path.iterdir()) == []


def test_no_network_says_what_was_tried_and_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "DOWNLOADS", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError) as caught:
        archives.fetch(Package(requirement="vaderSentiment==0.5", file="vaderSentiment-0.5.zip", sha256="0" * 64))
    assert "pip download" in str(caught.value)
    assert str(tmp_path / "vaderSentiment-0.5.zip") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_is_read_without_unpacking_paths(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("model/config.json", "{}")
        file.writestr("model/../../evil", "x")
    assert archives.read_members(tmp_path / "a.zip", "model") == {"config.json": b"{}"}
    with pytest.raises(UserError, match="no folder 'other'"):
        archives.read_members(tmp_path / "a.zip", "other")


def test_snippets_drop_zeros_and_duplicates_and_name_a_bad_line():
    text = "1\t0.5\tGood one\n2\t0\tNeutral\n3\t-1\tgood  ONE\r\n4\t-2.5\tbad\n"
    assert data.parse_snippets(text, "f") == [("Good one", 1), ("bad", 0)]
    with pytest.raises(UserError, match="f:2"):
        data.parse_snippets("1\t0.5\tx\n2\tno rating\n", "f")


def test_a_sentence_in_two_splits_or_an_empty_split_is_refused():
    with pytest.raises(UserError, match="'train' and 'test'"):
        data.check_disjoint({"train": [("A  b", 1)], "test": [("a B", 0)]})
    with pytest.raises(UserError, match="'train' is empty"):
        data.check_disjoint({"train": []})


def test_the_fingerprint_moves_with_text_label_and_split():
    base = {"a": [("x", 1)], "b": [("y", 0)]}
    others = [
        {"a": [("x", 0)], "b": [("y", 0)]},
        {"a": [("z", 1)], "b": [("y", 0)]},
        {"a": [("x", 1), ("y", 0)], "b": []},
    ]
    assert len({data.fingerprint(splits) for splits in [base, *others]}) == 4


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_source_hash_ignores_words_and_sees_code(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.files.SCRIPTS", tmp_path)
    file = tmp_path / "a.py"
    hashes = []
    for text in (
        "def f():\n    return 1\n",
        'def f():\n    """Doc."""\n    return 1  # why\n',
        "def f():\n    return 2\n",
    ):
        file.write_text(text)
        hashes.append(source_hash(file))
    assert hashes[0] == hashes[1] != hashes[2]


def test_source_hash_follows_imports():
    script = SCRIPTS / "01_finetune.py"
    assert source_hash(script) != source_hash(script, without=("compress/training.py",))


def test_source_hash_of_a_function_sees_what_it_uses_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.files.SCRIPTS", tmp_path)
    file = tmp_path / "a.py"
    text = "N = 1\n\ndef a():\n    return b()\n\ndef b():\n    return N\n\ndef c():\n    return 1\n"
    hashes = []
    for new in (
        text,
        text.replace("return 1", "return 2"),
        text.replace("return N", "return -N"),
        text.replace("N = 1", "N = 2"),
    ):
        file.write_text(new)
        hashes.append(source_hash(file, "a"))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()


@pytest.fixture
def artifact(tmp_path):
    """A folder with two bytes for weights, complete by its own account."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in data.TOKENIZER_FILES:
        (tokenizer / name).write_text("{}")
    about = dict(variant="v", method="m", parent=None, backend="torch", parameters=2)
    about |= dict(
        nonzero_parameters=1,
        labels=["a", "b"],
        max_length=8,
        options={},
        key="k",
        train_seconds=None,
        details={},
        runtime={},
    )
    folder = tmp_path / "v"
    saved = save_artifact(folder, lambda path: (path / "weights").write_bytes(b"ab"), tokenizer, **about)
    assert (saved.size, saved.size_with_tokenizer) == (2, 6)
    return folder


def test_damaged_swapped_and_missing_weights_are_named(artifact):
    read_artifact(artifact)
    (artifact / "weights").write_bytes(b"xy")
    with pytest.raises(UserError, match="weights: damaged"):
        read_artifact(artifact)
    (artifact / "weights").unlink()
    with pytest.raises(UserError, match="weights: missing"):
        read_artifact(artifact)


def test_a_wrong_backend_or_a_missing_library_is_a_clear_error(artifact, monkeypatch):
    monkeypatch.setitem(load.__globals__["BACKENDS"], "torch", ("no_such_library", None))
    with pytest.raises(UserError, match="no_such_library, which is not installed"):
        load(artifact)
    content = json.loads((artifact / "artifact.json").read_text()) | {"backend": "abacus"}
    write_json(artifact / "artifact.json", content)
    with pytest.raises(UserError, match="unknown 'abacus', known: onnxruntime, openvino, torch"):
        load(artifact)


def test_batches_cover_every_sentence_once_and_pad_to_their_own_longest():
    ids = [[1] * length for length in (3, 9, 1, 4, 4)]
    for by_length in (False, True):
        seen = []
        for positions, input_ids, mask in batches(ids, 2, by_length):
            seen += list(positions)
            assert mask.sum(1).tolist() == [len(ids[p]) for p in positions]
            assert input_ids.shape[1] == max(len(ids[p]) for p in positions)
            assert np.array_equal(input_ids, mask)
        assert sorted(seen) == [0, 1, 2, 3, 4]
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("error", "free", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.npz"), 2**40, "disk is full; free some space"),
        (RuntimeError("unexpected pos 3916608 vs 3916496"), 0, "disk is full; free some space"),
        (RuntimeError("unexpected pos 3916608 vs 3916496"), 2**40, None),
    ],
)
def test_a_full_disk_is_told_as_such_and_is_no_fault_of_the_variant(error, free, says, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    monkeypatch.setattr("sys.argv", ["stage"])
    written = []
    stage = SimpleNamespace(name=str, is_done=lambda variant: False, write=lambda *_, **about: written.append(about))

    def prepare(variant):
        raise error

    stage.prepare = prepare
    variant = SimpleNamespace(name="x")
    if says is None:
        assert Stage.run_one(stage, variant) is False
        assert written[0]["status"] == "failed"
        return
    with pytest.raises(SystemExit, match=says):
        main_guard(lambda args: Stage.run_one(stage, variant), argparse.ArgumentParser())
    assert not written
