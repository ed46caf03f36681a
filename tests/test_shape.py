"""Costs without quality, and other devices than the CPU: what is built, left empty and skipped."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compress import provenance
from compress.config.profile import Profile, load_profile
from compress.engines.int8 import dynamic_int8
from compress.engines.predictor import load
from compress.engines.pytorch import SAVED, TorchPredictor, load_int8_saved, torch_precision
from compress.errors import Skip, UserError
from compress.graph.building import check_buildable
from compress.report.pages import page_templates
from compress.results.collating import collate
from compress.results.reading import Results, read_results
from compress.storage.artifact import TOKENIZER_FILES
from compress.storage.record import Provenance
from conftest import save_model
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


def test_the_shape_profile_has_the_parameters_of_bert_base():
    with torch.device("meta"):
        network = BertForSequenceClassification(BertConfig(**load_profile("bert-base-shape").backbone.random_config))
    assert sum(weight.numel() for weight in network.parameters()) == 109_483_778


@pytest.fixture
def saved(model, tmp_path):
    """The folder of the tiny model, built by the method int8-saved."""
    for name in TOKENIZER_FILES:
        (tmp_path / name).write_text("{}")

    def write(folder):
        model.config.save_pretrained(folder)
        torch.save(dynamic_int8(model).state_dict(), folder / SAVED)

    save_model(tmp_path / "v", write, tmp_path, backend="torch-int8-saved")
    return tmp_path / "v"


def test_saved_int8_has_the_logits_of_the_model_that_torch_quantized(saved, model, arrays):
    threads = torch.get_num_threads()
    loaded = load(saved, threads=threads)
    expected = TorchPredictor(dynamic_int8(model), "cpu", "int8", threads)
    for pair in arrays:
        np.testing.assert_array_equal(loaded(*pair), expected(*pair))
    assert loaded.precision == "int8"
    assert torch_precision(model) == "fp32", "quantize_dynamic must not change the parent"
    # One byte per weight of a Linear, four for all others, and a little for the format of torch.save.
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    least = linear + 4 * (sum(w.numel() for w in model.parameters()) - linear)
    assert least < (saved / SAVED).stat().st_size < least + 40_000


def test_saved_int8_of_another_shape_is_an_error(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"hidden_size": 16}))
    artifact = SimpleNamespace(backend="torch-int8-saved")
    with pytest.raises(UserError, match=SAVED):
        load_int8_saved(saved, artifact, "cpu", 1)
    with pytest.raises(UserError, match="runs on the CPU"):
        load_int8_saved(saved, artifact, "cuda", 1)


def test_many_batches_have_the_logits_of_single_calls(model, arrays):
    predictor = TorchPredictor(model, "cpu", "fp32", 1)
    for logits, pair in zip(predictor.many(iter(arrays)), arrays, strict=True):
        np.testing.assert_array_equal(logits, predictor(*pair))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('no_quality = "random', 'no_quality = ""\n#', "no_quality: "),
        ('"BERT_onnx cpu" = "ort-fp32-plain"', '"BERT_onnx cpu" = "other"', "course: no variant is called 'other'"),
        ("layers = [0, 1, 2, 3, 4, 5]", "layers = [0], vocabulary = 9", "groups.smaller.variants.cut-6x768.student: "),
        ('method = "int8-saved"', 'method = "mixed-precision", tolerance = 1.0', "int8-saved: is chosen by quality"),
    ],
)
def test_a_profile_without_quality_is_checked(error_of_profile, old, new, key):
    assert key in error_of_profile("bert-base-shape", old, new)


def test_methods_for_the_cpu_only_are_skipped_on_a_gpu_before_they_are_built():
    variants = {variant.name: variant for variant in load_profile("bert-base-shape").variants}
    skipped = {name for name, variant in variants.items() if variant.cpu_only}
    assert {"int8-saved", "int8-dynamic", "ort-int8", "ov-fp32", "optimum-ort-o2"} <= skipped
    built = {"bert-orig", "cut-6x768", "cluster-16", "structured-50-oneshot", "torch-bf16", "compiled-bf16"}
    assert not skipped & built
    for name in skipped:
        with pytest.raises(Skip, match=f"not on cuda: {variants[name].cpu_only}"):
            check_buildable(SimpleNamespace(device="cuda", variant=variants[name]))


def test_provenance_without_git_or_a_library_has_empty_fields(monkeypatch):
    monkeypatch.setattr(provenance, "git", lambda *_: None)
    monkeypatch.setattr(provenance, "LIBRARIES", ("torch", "no-such-library"))
    monkeypatch.setenv("SOURCE_COMMIT", "abc")
    content = provenance.provenance(0, 2, "cpu")
    assert (content["commit"], content["dirty"]) == ("abc", None)
    assert content["libraries"]["no-such-library"] is None
    Provenance.model_validate(content)
    monkeypatch.delenv("SOURCE_COMMIT")
    assert provenance.code()["commit"] is None


def test_a_gpu_needs_a_baseline_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    profile = load_profile("smoke")
    (profile.variant_folder("finetuned")).mkdir(parents=True)
    (profile.variant_folder("finetuned") / "record.json").write_text("{}")
    with pytest.raises(UserError, match=r"cuda/seed0\.npz: missing"):
        collate(profile, [0], "cuda", "core", profile.results_on("cuda"))
    assert not profile.results_on("cuda").exists()


def test_results_of_a_gpu_join_the_cpus_or_stand_alone(monkeypatch, tmp_path):
    profile = load_profile("minilm")
    folder = tmp_path / "results/minilm"
    for name in ("variants.csv", "environment.json", "data.json", "methods.json"):
        for place in (folder, folder / "cuda"):
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(profile.results / name, place)
    table = folder / "cuda/variants.csv"
    table.write_text(table.read_text("utf-8").replace(",cpu,", ",cuda,"), "utf-8")
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    both = read_results(profile)
    assert {row.device for row in both.rows} == {"cpu"}
    assert {row.device for row in both.gpu.rows} == {"cuda"}
    assert "## On a GPU" in page_templates(profile, both).get_template("gpu.md.j2").render()
    (folder / "variants.csv").unlink()
    alone = read_results(profile)
    assert alone.rows == both.gpu.rows
    assert alone.gpu is None


@pytest.fixture(scope="module")
def shape() -> tuple[Profile, Results]:
    profile = load_profile("bert-base-shape")
    return profile, read_results(profile)


def test_the_committed_sizes_are_the_courses(shape):
    sizes = {row.variant: row.size_mb for row in shape[1].rows}
    course = {"bert-orig": 438.0, "int8-saved": 181.5, "cut-6x768": 267.8, "ort-fp32-plain": 438.2}
    assert {name: sizes[name] for name in course} == pytest.approx(course, rel=0.002)


def test_the_committed_results_have_every_cost_and_no_quality(shape):
    profile, results = shape
    assert [row.variant for row in results.rows] == [variant.name for variant in profile.variants]
    for row, variant in zip(results.rows, profile.variants, strict=True):
        assert row.status == "ok"
        assert row.f1_test is None
        assert REASON in row.reason
        assert row.peak_rss_mb > 100
        assert ((row.latency_ms_p50 is not None) and (row.throughput_per_s is not None)) == variant.timed
        assert ("shapes" in results.methods[row.variant]["measured"]) == variant.timed


def test_the_committed_report_has_the_courses_ratios_of_times(shape):
    text = (shape[0].report / "report.md").read_text("utf-8")
    assert "| BERT_onnx" in text
    rows = {cells[0]: cells[7] for line in text.splitlines() if len(cells := line.strip("| ").split(" | ")) >= 8}
    assert rows["BERT_q_dynamic"].strip() == "1.16"
    assert rows["BERT_onnx"].strip() == "6.15"
