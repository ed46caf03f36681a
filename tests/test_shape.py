"""Models of which only the cost counts, and other devices than the CPU: what is made, left empty and refused."""

import json
import shutil
from types import SimpleNamespace

import collate
import numpy as np
import pytest
import render
import torch
from compress import provenance
from compress.config.profile import Profile, Student, load_profile
from compress.engines import predictor as predict
from compress.engines.pytorch import precision_of
from compress.errors import UserError
from compress.methods.distill import make_student
from compress.paths import PROFILES
from compress.report.tables import made_otherwise
from compress.results.reading import read_results
from compress.stage import Skip, Stage
from compress.storage.artifact import TOKENIZER_FILES, save_artifact
from compress.storage.record import Provenance, Record, Sizes
from conftest import run
from transformers import BertConfig, BertForSequenceClassification

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
REASON = "random weights: quality means nothing"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=200, initializer_range=0.3, **SIZES)).eval()


@pytest.fixture(scope="module")
def arrays():
    chance = np.random.default_rng(0)
    masks = [(np.arange(n) < chance.integers(1, n + 1, (b, 1))).astype(np.int64) for b, n in ((1, 7), (4, 30), (3, 12))]
    return [(chance.integers(0, 200, mask.shape), mask) for mask in masks]


# --- what is made --------------------------------------------------------------------------------------------


def test_the_shape_profile_has_the_parameters_of_bert_base():
    with torch.device("meta"):
        network = BertForSequenceClassification(BertConfig(**load_profile("bert-base-shape").backbone.random_config))
    assert sum(weight.numel() for weight in network.parameters()) == 109_483_778


@pytest.fixture
def saved(model, tmp_path):
    """The tiny model in a folder as the maker int8-saved leaves it."""
    for name in TOKENIZER_FILES:
        (tmp_path / name).write_text("{}")

    def write(folder):
        model.config.save_pretrained(folder)
        torch.save(predict.dynamic_int8(model).state_dict(), folder / predict.SAVED)

    about = dict(variant="v", method="int8-saved", parent=None, parameters=2, nonzero_parameters=1, labels=["a", "b"])
    about |= dict(max_length=8, options={}, key="k", train_seconds=None, details={}, runtime={})
    save_artifact(tmp_path / "v", write, tmp_path, backend="torch-int8-saved", **about)
    return tmp_path / "v"


def test_saved_int8_answers_as_what_torch_quantized(saved, model, arrays):
    threads = torch.get_num_threads()
    loaded = predict.load(saved, threads=threads)
    wanted = predict.TorchPredictor(predict.dynamic_int8(model), "cpu", "int8", threads)
    for pair in arrays:
        np.testing.assert_array_equal(loaded(*pair), wanted(*pair))
    assert loaded.precision == "int8"
    assert precision_of(model) == "fp32", "quantize_dynamic must leave the parent as it is"
    # A byte for each weight of a Linear, four for the others; torch.save adds its own bytes.
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    least = linear + 4 * (sum(w.numel() for w in model.parameters()) - linear)
    assert least < (saved / predict.SAVED).stat().st_size < least + 40_000


def test_saved_int8_of_another_shape_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"hidden_size": 16}))
    artifact = SimpleNamespace(backend="torch-int8-saved")
    with pytest.raises(UserError, match=predict.SAVED):
        predict.load_int8_saved(saved, artifact, "cpu", 1)
    with pytest.raises(UserError, match="runs on the CPU"):
        predict.load_int8_saved(saved, artifact, "cuda", 1)


def test_a_cut_student_answers_as_its_parent_without_the_other_layers(model, arrays):
    student = make_student(model, Student(layers=[1]), "parent", 0)
    shorter = BertForSequenceClassification(model.config).eval()
    shorter.load_state_dict(model.state_dict())
    del shorter.bert.encoder.layer[0]
    for ids, mask in arrays:
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            torch.testing.assert_close(student(**inputs).logits, shorter(**inputs).logits)


def test_many_batches_get_the_answers_of_single_calls(model, arrays):
    predictor = predict.TorchPredictor(model, "cpu", "fp32", 1)
    for found, pair in zip(predictor.many(iter(arrays)), arrays, strict=True):
        np.testing.assert_array_equal(found, predictor(*pair))


# --- profiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('no_quality = "random', 'no_quality = ""\n#', "no_quality"),
        ('BERT_onnx = "ort-fp32-plain"', 'BERT_onnx = "other"', "course: no variant is called 'other'"),
        ("layers = [0, 1, 2, 3, 4, 5]", "layers = [0], vocabulary = 9", "student: "),
        (
            'method = "int8-saved"\n',
            'method = "champion"\ngoal = "tiny"\ntolerance = 1.0\n',
            "int8-saved: is chosen by quality",
        ),
    ],
)
def test_a_profile_without_quality_is_checked(monkeypatch, tmp_path, old, new, key):
    text = (PROFILES / "bert-base-shape.toml").read_text("utf-8")
    assert old in text
    monkeypatch.setattr("compress.config.profile.PROFILES", tmp_path)
    (tmp_path / "bert-base-shape.toml").write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(UserError) as caught:
        load_profile("bert-base-shape")
    assert "bert-base-shape.toml" in str(caught.value)
    assert key in str(caught.value)


# --- empty cells ---------------------------------------------------------------------------------------------


def record(name: str, size: int) -> Record:
    sizes = Sizes(bytes=size, bytes_with_tokenizer=size, parameters=1, nonzero_parameters=1)
    measured = SimpleNamespace(precision="fp32", threads=2, peak_rss_bytes=10**6, throughput_sentences=8)
    plain = dict.fromkeys(Record.model_fields, None) | {"reason": "", "status": "ok", "variant": name}
    return Record.model_construct(**plain | {"sizes": sizes, "measured": measured})


@pytest.mark.parametrize("no_quality", [REASON, None])
def test_quality_is_empty_with_the_reason_and_only_where_the_profile_says_so(no_quality):
    profile = SimpleNamespace(baseline="a", no_quality=no_quality)
    labels = {"test": np.array([0, 1, 1, 0])}
    times = {"latency_seconds": np.ones((3, 2)), "throughput_seconds": np.ones((4, 2))}
    logits = {name: np.eye(2)[[0, 1, 1, 1]] for name in ("logits/test", "logits_batched/test")}
    rows = collate.seed_rows(
        profile, {"a": record("a", 8), "b": record("b", 2)}, {"a": logits | times, "b": logits}, labels
    )
    quality = [c for c in collate.COLUMNS if c.startswith(("f1", "mcnemar", "flip", "batch_flip", "acc", "ece"))]
    filled = [c for c in quality if rows[0][c] is not None]
    assert (filled == []) == (no_quality is not None)
    assert [row["size_ratio"] for row in rows] == [1, 4]
    assert rows[0]["latency_speedup"] == 1
    assert rows[0]["reason"] == (no_quality or "")
    assert rows[1]["reason"] == "; ".join(filter(None, [collate.NOT_TIMED, no_quality]))


# --- other devices -------------------------------------------------------------------------------------------


def test_what_has_kernels_for_the_cpu_only_is_skipped_on_a_gpu_before_it_is_made():
    variants = {variant.name: variant for variant in load_profile("bert-base-shape").variants}
    skipped = {name for name, variant in variants.items() if variant.cpu_only}
    assert {"int8-saved", "int8-dynamic", "ort-int8", "ov-fp32", "optimum-ort-o2"} <= skipped
    assert not skipped & {
        "bert-orig",
        "cut-6x768",
        "cluster-16",
        "structured-50-oneshot",
        "torch-bf16",
        "compiled-bf16",
    }
    stage = Stage.__new__(Stage)
    stage.device = "cuda"
    for name in skipped:
        with pytest.raises(Skip, match=f"not on cuda: {variants[name].cpu_only}"):
            stage.make(variants[name])


def test_a_copy_without_git_or_a_library_is_told_as_such(monkeypatch):
    monkeypatch.setattr(provenance, "git", lambda *_: None)
    monkeypatch.setattr(provenance, "LIBRARIES", ("torch", "no-such-library"))
    monkeypatch.setenv("SOURCE_COMMIT", "abc")
    found = provenance.provenance(0, 2, "cpu")
    assert (found["commit"], found["dirty"]) == ("abc", None)
    assert found["libraries"]["no-such-library"] is None
    Provenance.model_validate(found)
    assert "no-such-library" not in render.library_list({"libraries": [found["libraries"]]})
    monkeypatch.delenv("SOURCE_COMMIT")
    assert provenance.code()["commit"] is None


def test_a_gpu_needs_a_baseline_of_its_own(smoke):
    done = run(smoke[0], ".venv/bin/python", "scripts/collate.py", "--profile", "smoke", "--device", "cuda")
    assert done.returncode == 1
    assert "finetuned-cuda.json: no such record" in done.stderr
    assert "bert-orig" not in done.stderr, "the other variants may be missing there"
    assert not (smoke[0] / "results/smoke/cuda").exists()
    assert list((smoke[0] / "build/smoke").glob(".finetune-seed0-cpu-*")), "the CPU's stages need not look again"


def test_results_of_a_gpu_lie_beside_the_cpus_or_stand_alone(monkeypatch, tmp_path):
    profile = load_profile("minilm")
    shutil.copytree(profile.results, tmp_path / "results/minilm")
    monkeypatch.setattr("compress.profile.ROOT", tmp_path)
    both = read_results(profile)
    assert {row["device"] for row in both.rows} == {"cpu"}
    assert {row["device"] for row in both.gpu.rows} == {"cuda"}
    assert both.gpu.environment["machine"][0]["gpu"]
    assert not made_otherwise(both.gpu, both.gpu.methods)
    without = {name: method for name, method in both.gpu.methods.items() if name != "distill-tiny"}
    otherwise = {row["variant"] for row in made_otherwise(both.gpu, without)}
    assert {"distill-tiny", "distill-tiny-torch-bf16"} <= otherwise, "the model, and what is made from it"
    assert not {"finetuned", "distill-3x384"} & otherwise
    for path in (tmp_path / "results/minilm").glob("*.*"):
        path.unlink()
    alone = read_results(profile)
    assert alone.rows == both.gpu.rows
    assert alone.gpu is None


# --- the committed results -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shape() -> tuple[Profile, object]:
    profile = load_profile("bert-base-shape")
    return profile, read_results(profile)


def test_the_courses_sizes_come_out(shape):
    sizes = {row["variant"]: row["size_mb"] for row in shape[1].rows}
    wanted = {"bert-orig": 438.0, "int8-saved": 181.5, "cut-6x768": 267.8, "ort-fp32-plain": 438.2}
    assert {name: sizes[name] for name in wanted} == pytest.approx(wanted, rel=0.002)


def test_every_cost_is_there_and_no_quality(shape):
    profile, results = shape
    assert [row["variant"] for row in results.rows] == [variant.name for variant in profile.variants]
    for row, variant in zip(results.rows, profile.variants, strict=True):
        assert row["status"] == "ok"
        assert row["f1_test"] is None
        assert REASON in row["reason"]
        assert row["peak_rss_mb"] > 100
        assert all((row[c] is not None) == variant.timed for c in ("latency_ms_p50", "throughput_per_s"))
        assert ("shapes" in results.methods[row["variant"]]["measured"]) == variant.timed


def test_the_shape_report_says_what_its_results_say(shape):
    text = render.pages(shape[0], render.context(*shape))["report"]
    assert (shape[0].report / "report.md").read_text("utf-8") == text
    # The course's ratios of times, from its own seconds.
    assert "| BERT_onnx" in text
    assert {"6.15", "1.16"} <= set(text.replace("|", " ").split())
