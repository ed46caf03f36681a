"""Bad input: every error names the file, the key or the field, and leaves nothing incomplete behind."""

import argparse
import errno
import json
import os
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from compress.cli import main_guard
from compress.config.groups import Listing, list_variants
from compress.config.profile import load_profile
from compress.config.sources import Backbone, Data, Package
from compress.config.variants import METHODS, Classifier
from compress.data import archives
from compress.data.identity import profile_files
from compress.data.sentences import check_disjoint, fingerprint
from compress.data.snippets import parse_snippets
from compress.engines.predictor import batches
from compress.errors import UserError
from compress.files import atomic_path, digest, write_json
from compress.methods.training import last_checkpoint
from compress.paths import ROOT, SCRIPTS
from compress.storage.artifact import TOKENIZER_FILES
from compress.storage.packed import save_tensors
from conftest import read_csv, save_model

SERVED = '"finetuned", "finetuned-ort-int8", "ort-int8-static-percentile", "distill-1x32", "finetuned-ort-fp32"'


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("validation = 64", "validation = 64\nvalidashun = 1", "data.validashun: "),
        ("validation = 64", 'validation = "64"', "data.validation: "),
        ("test = 128", "test = -1", "data.test: "),
        ("[measure]", "[measure]\npatience = 1.0", "measure.patience: "),
        ("epochs = 2.0, ", "", "variants.finetuned.training.epochs: "),
        ('method = "finetune"', 'method = "fintune"', "variants.finetuned.method: is 'fintune'"),
        (
            "epochs = 1.0, batch_size = 16, learning_rate = 1e-3 }\n[gr",
            "epochs = 1.0 }\n[gr",
            "groups.trained.variants.qat-int4",
        ),
        ('method = "finetune"', 'method = ["finetune"]', "variants.finetuned.method: is ['finetune']"),
        ('method = "finetune"', 'method = "finetune", scope = "full"', "variants.finetuned.scope: list the variant in"),
        (
            'method = "finetune"',
            'method = "finetune", name = "x"',
            "variants.finetuned.name: the variant's name is its",
        ),
        ("bits = 4", "bits = 40", "groups.trained.variants.qat-int4.bits: "),
        ("bf16 = {", "bf16 = 16 #", "groups.untrained.variants.bf16: "),
        ("[groups.int8.variants]", "[groups.int8.other]", "groups.int8.variants: Field required"),
        ('{ precision = "fp16", ', '{ precision = "fp17", ', "grid.engines.ort.precisions.fp16.precision: "),
        ('{ precision = "fp16", ', '{ precision = "fp16", reduced_range = true, ', "reduced_range: belongs to the"),
        ("width = 16 }", "width = 16, training = { freeze_embeddings = true } }", "the vectors of static are trained"),
        ('level = "O2", ', 'level = "O2", quantization = "dynamic", ', "optimum-ort-o2"),
        ("least_seconds = 0.5", "least_seconds = 500", "serving.load: most_seconds: must be at least"),
        ('parent = "distill-1x32"\n', "", "serving: tasks: need the keys parent and training, too"),
        ("[grid]", "[grid]\nmodules = []", "grid.modules: "),
        ("cluster-8 =", "int8-dynamic =", "the name 'int8-dynamic' is given twice"),
        ("cluster-8 =", "cache =", "the name 'cache' is that of a folder of the build"),
        ("cluster-8 =", "Cluster_8 =", "groups.untrained.variants.Cluster_8.name: "),
        ('parent = "prune-2of4"', 'parent = "distill-tiny"', "deep-compression: parent: no variant before it"),
        ('counterpart = "ov-int8-weights"', 'counterpart = "other"', "optimum-ov-int8-weights: counterpart: "),
        ('baseline = "finetuned"', 'baseline = "other"', "baseline: no variant is called 'other'"),
        ('baseline = "finetuned"', 'baseline = "finetuned"\ncore = ["other"]', "core: no variant is called 'other'"),
        (
            'baseline = "finetuned"',
            f'baseline = "finetuned"\ncore = [{SERVED}, "int8-saved"]',
            "core: must list 'bert-orig'",
        ),
        ('baseline = "finetuned"', 'baseline = "finetuned"\ncore = ["finetuned"]', "core: must list 'distill-1x32'"),
        ('goal = "tiny"', 'goal = "tinny"', "champions.1.goal: "),
        ('baseline = "finetuned"', 'baseline = "finetuned"\nno_quality = "-"', "champions: are chosen by quality"),
        ('["finetuned", "finetuned-ort', '["bert-orig", "finetuned-ort', "measure.shapes.variants: 'bert-orig' is not"),
        ('ablated = "ort', 'ablated = "no', "serving: no variant is called 'no-int8-static-percentile'"),
        ('baseline = "finetuned"', 'baseline = "finetuned"\nteacher = "smoke"', "teacher: no other profile is called"),
        ('baseline = "finetuned"', 'baseline = "finetuned"\ncourse = { Bert = "finetuned" }', "course.Bert"),
        ("epochs = 2.0, batch_size = 16,", 'epochs = 2.0, teacher = "large",', "teacher: only for methods with"),
        ("epochs = 2.0, batch_size = 16,", "epochs = 2.0, soft_weight = 0.5,", "soft_weight: only for methods with"),
        ("training = { weight_decay = 0.0 }", 'training = { teacher = "large" }', "the profile names no teacher"),
        ("max_train = 256", 'max_train = 256\nolder_split_seeds = ["0"]', "data.older_split_seeds.0"),
        ('folder = "gt_all', 'member = "a.zip"\nfolder = "gt_all', "member: the name of the archive"),
        ('initialization = "random"', 'initialization = "encoder"', "the profile has no student_backbone"),
        ('name = "smoke"', 'name = "smoke', "not valid TOML"),
        ('name = "smoke"', 'name = "smok"', "name: is 'smok', must be the name of the file"),
    ],
)
def test_a_wrong_profile_names_file_and_key(error_of_profile, old, new, key):
    assert key in error_of_profile("smoke", old, new)


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(UserError, match=r"nonsense.*minilm, smoke"):
        load_profile("nonsense")


def test_groups_share_options_and_the_grid_multiplies_models_engines_and_precisions():
    text = """
    core = ["a", "a-ort-int8"]
    [variants]
    a = { method = "untrained" }
    [groups.trained]
    parent = "a"
    training = { epochs = 1.0, learning_rate = 1e-3 }
    [groups.trained.variants]
    b = { method = "qat", bits = 4, training = { epochs = 2.0 } }
    [groups.tools.variants]
    c = { method = "torch", precision = "bf16", parent = "b" }
    [grid]
    models = ["a", "b"]
    [grid.engines.ort]
    method = "onnx"
    precisions.fp32 = { precision = "fp32" }
    precisions.int8 = { precision = "int8-dynamic", models = ["a"], timed = false }
    """
    variants = list_variants(Path("p.toml"), Listing.model_validate(tomllib.loads(text)))
    # The grid's variants of HW4 come before those of HW6.
    assert [v.name for v in variants] == ["a", "b", "a-ort-fp32", "b-ort-fp32", "a-ort-int8", "c"]
    assert [v.parent for v in variants] == [None, "a", "a", "b", "a", "b"]
    assert [v.name for v in variants if v.scope == "core"] == ["a", "a-ort-int8"]
    assert [v.name for v in variants if not v.timed] == ["a-ort-int8"]
    assert (variants[1].training.epochs, variants[1].training.learning_rate) == (2.0, 1e-3)


@pytest.mark.parametrize("name", ["smoke", "minilm", "base", "bert-base", "bert-base-shape"])
def test_committed_profiles_are_valid_and_their_core_is_small(name):
    profile = load_profile(name)
    core = profile.in_scope("core")
    assert profile.in_scope("full") == profile.variants
    assert 0 < len(core) <= 60
    for champion in profile.champions:
        assert champion.name == f"champion-{champion.goal}"
    for service in profile.services:
        assert (service.parent, service.timed) == (profile.serving.parent, False)


def test_smoke_has_every_method_and_each_names_its_script_and_module():
    assert {variant.method for variant in load_profile("smoke").variants} == set(METHODS)
    for option in (*METHODS.values(), Classifier):
        assert (SCRIPTS / option.script).exists()
        assert (SCRIPTS / "compress" / "methods" / f"{option.module}.py").exists(), option.module


@pytest.mark.committed
def test_the_core_of_the_default_profile_trains_within_55_minutes_and_has_every_method():
    profile = load_profile("minilm")
    rows = [row for row in read_csv(profile.results / "variants.csv") if (row["seed"], row["device"]) == ("0", "cpu")]
    seconds = {row["variant"]: float(row["train_seconds"] or 0) for row in rows}
    core = profile.in_scope("core")
    # No committed run holds these two yet: they count as a student of the same transfer set with more layers.
    unmeasured = {"taught-1x384": "taught-3x384", "taught-1x384-ort-int8": "taught-3x384-ort-int8"}
    seconds = {new: seconds[larger] for new, larger in unmeasured.items()} | seconds
    assert sum(seconds[variant.name] for variant in core) < 55 * 60  # two at a time
    appendix = {"cascade", "low-rank", "mixed-precision", "ternary-bert", "weight-only"}
    assert {variant.method for variant in core} == {variant.method for variant in profile.variants} - appendix
    served = profile.serving.of_scope("core")
    assert (len(served.variants), len(served.load.rates), served.load.repeats, served.ablated) == (3, 3, 1, None)
    assert profile.serving.of_scope("full") is profile.serving
    assert profile.serving.load.repeats > 1


def test_folders_of_seeds_and_devices():
    profile = load_profile("smoke")
    assert profile.variant_folder("bf16") == ROOT / "build/smoke/seed0/bf16"
    assert profile.variant_folder("bf16", 2, "cuda") == ROOT / "build/smoke/seed2-cuda/bf16"
    assert profile.plan_folder() == ROOT / "build/smoke/plan"
    assert profile.plan_folder("cuda") == ROOT / "build/smoke/plan-cuda"


def test_only_the_baseline_of_the_default_profile_is_built_with_two_threads():
    threads = {variant.name: variant.threads for variant in load_profile("minilm").variants}
    assert threads.pop("finetuned") == 2
    assert set(threads.values()) == {None}


def test_local_files_of_a_profile_are_listed_and_packages_have_none(tmp_path):
    profile = load_profile("smoke")
    assert profile_files(profile) == []
    (tmp_path / "a.csv").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").touch()
    (tmp_path / "b" / ".git").mkdir()
    (tmp_path / "b" / ".git" / "index").touch()
    local = {"data": Data(path=str(tmp_path / "a.csv")), "backbone": Backbone(path=str(tmp_path / "b"))}
    files = profile_files(profile.model_copy(update=local))
    assert files == [tmp_path / "a.csv", tmp_path / "b" / "config.json"]


def test_a_wrong_checksum_removes_the_file_and_prints_both(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "DOWNLOADS", tmp_path)
    (tmp_path / "a-1.zip").write_bytes(b"not it")
    with pytest.raises(UserError, match=f"(?s)expected SHA-256 {'0' * 64}.*actual .*[0-9a-f]{{64}}"):
        archives.fetch(Package(requirement="a==1", file="a-1.zip", sha256="0" * 64))
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_command_and_the_place_for_the_file_are_shown(monkeypatch, tmp_path):
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
    (tmp_path / "target").mkdir()
    archives.unpack(tmp_path / "a.zip", "model", tmp_path / "target", ["config.json"])
    assert [file.read_text() for file in (tmp_path / "target").iterdir()] == ["{}"]
    for source, name in (("other", "config.json"), ("model", "evil")):
        with pytest.raises(UserError, match=f"no file '{name}' in its folder '{source}'"):
            archives.unpack(tmp_path / "a.zip", source, tmp_path / "target", [name])


def test_snippets_drop_zeros_and_duplicates_and_name_a_bad_line():
    text = "1\t0.5\tGood one\n2\t0\tNeutral\n3\t-1\tgood  ONE\r\n4\t-2.5\tbad\n"
    assert [row[:2] for row in parse_snippets(text, "f")] == [("Good one", 1), ("bad", 0)]
    with pytest.raises(UserError, match="f:2"):
        parse_snippets("1\t0.5\tx\n2\tno rating\n", "f")


def test_a_sentence_in_two_splits_or_an_empty_split_is_refused():
    with pytest.raises(UserError, match="'train' and 'test'"):
        check_disjoint({"train": [("A  b", 1)], "test": [("a B", 0)]})
    with pytest.raises(UserError, match="'train' is empty"):
        check_disjoint({"train": []})


def test_the_fingerprint_depends_on_text_label_and_split():
    base = {"a": [("x", 1)], "b": [("y", 0)]}
    others = [
        {"a": [("x", 0)], "b": [("y", 0)]},
        {"a": [("z", 1)], "b": [("y", 0)]},
        {"a": [("x", 1), ("y", 0)], "b": []},
    ]
    assert len({fingerprint(splits) for splits in [base, *others]}) == 4


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_all_files_of_an_artifact_have_the_permissions_of_new_files(tmp_path, umask, mode):
    for name in TOKENIZER_FILES:
        (tmp_path / name).write_text("{}")

    def write(folder):
        save_tensors(folder, {"a": np.zeros(3, np.float32)})  # safetensors gives its file 0600
        (folder / "deeper").mkdir(mode=0o700)
        (folder / "deeper" / "a.bin").touch(0o777)

    previous = os.umask(umask)
    try:
        saved = save_model(tmp_path / "model", write, tmp_path)
    finally:
        assert os.umask(previous) == umask
    assert saved.size_with_tokenizer - saved.size == len("{}") * len(TOKENIZER_FILES)
    paths = [tmp_path / "model", *(tmp_path / "model").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {mode}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o777 & ~umask}


def test_a_half_written_checkpoint_is_removed_and_the_one_before_it_used(tmp_path):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()


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
    ("error", "free", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.npz"), 2**40, "disk is full; free some space"),
        (RuntimeError("unexpected pos 3916608 vs 3916496"), 0, "disk is full; free some space"),
        (RuntimeError("unexpected pos 3916608 vs 3916496"), 2**40, None),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x.npz"), 2**40, "x.npz: this user may not"),
    ],
)
def test_an_error_of_the_machine_ends_a_command_with_a_clear_message(error, free, message, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    monkeypatch.setattr("sys.argv", ["build"])

    def main(args):
        raise error

    with pytest.raises(SystemExit if message else RuntimeError, match=message):
        main_guard(main, argparse.ArgumentParser())
