"""Cascades of two tiny models: which of them answers, the threshold, the artifact, the graph, costs and the report."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compress.config.profile import load_profile
from compress.config.variants import Cascade
from compress.engines.predictor import Predictor, load, load_tokenizer, predict, token_ids
from compress.engines.two_stage import CascadePredictor, confidence
from compress.errors import UserError
from compress.graph.planning import makefile, parents_of, sources_of, variants_to_build
from compress.methods.cascade import cascade, cascaded, choose_threshold
from compress.report import pages, views
from compress.results.costs import speedup_of, time_columns
from compress.results.reading import read_results
from compress.results.seedfile import Entry, Measured, Seed
from compress.results.selection import candidates
from compress.results.statistics import mean_speedup, paired_speedup
from compress.serving.limits import Options
from compress.serving.loading import load_models
from compress.storage.artifact import read_artifact
from conftest import save_model
from sklearn.metrics import f1_score
from test_no_encoder import WORDS, sentences
from test_results import BASE, record
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

PROFILE = load_profile("minilm")
TEXTS = sentences(40, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with the artifacts of two tiny BERTs, fast and slow, and of one with another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("fast", "slow", "foreign")):
        words = [*WORDS, "film2"] if name == "foreign" else WORDS
        tokenizer = root / f"{name}-tokenizer"
        tokenizer.mkdir()
        (tokenizer / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        BertTokenizerFast(tokenizer / "vocab.txt").save_pretrained(tokenizer)
        torch.manual_seed(i)
        sizes = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1 + i, "num_attention_heads": 2}
        config = BertConfig(vocab_size=len(words) + 5, initializer_range=0.6, **sizes)
        model = BertForSequenceClassification(config).eval()
        counts = {"parameters": 10 * (i + 1), "nonzero_parameters": 9 * (i + 1)}
        save_model(root / name, model.save_pretrained, tokenizer, **counts)
    return root


@pytest.fixture(scope="module")
def ids(models):
    return token_ids(load_tokenizer(models / "fast", 16), TEXTS)


def built(models, folder, second="slow"):
    """(the artifact's folder, what the method returned) of a cascade of the fast and another model.

    The validation labels are the slow model's predictions, so that the fast one is worse.
    """
    texts = sentences(120, 5)
    labels = predict(load(models / "slow"), token_ids(load_tokenizer(models / "slow", 16), texts)).argmax(-1).tolist()
    profile = SimpleNamespace(
        data=SimpleNamespace(max_length=16), variant_folder=lambda name, seed, device: models / name
    )
    context = SimpleNamespace(
        profile=profile,
        seed=0,
        device="cpu",
        threads=1,
        parent=models / "fast",
        splits={"validation": {"text": texts, "label": labels}},
    )
    result = cascade(SimpleNamespace(second=second, tolerance=10.0), context)
    about = {
        name: getattr(result, name) for name in ("backend", "parameters", "nonzero_parameters", "details", "runtime")
    }
    save_model(folder, result.write, context.parent, **about)
    return folder, result


@pytest.mark.parametrize("size", [1, 7, 40])
def test_each_row_has_the_logits_of_the_model_that_answers_it(models, ids, size):
    first, second = (load(models / name) for name in ("fast", "slow"))
    alone = [predict(model, ids) for model in (first, second)]
    middle = float(np.median(confidence(alone[0])))
    passed = confidence(alone[0]) < middle
    assert 0 < passed.sum() < len(passed)
    for threshold, expected in (
        (0.0, alone[0]),
        (1.01, alone[1]),
        (middle, np.where(passed[:, None], alone[1], alone[0])),
    ):
        logits = predict(CascadePredictor(first, second, threshold), ids, size)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.1


class Recorded(Predictor):
    """The logits of a row are those listed for its first token; every call is recorded."""

    threads = 1

    def __init__(self, precision, logits):
        self.precision, self.logits, self.calls = precision, np.array(logits, np.float32), []

    def __call__(self, input_ids, attention_mask):
        self.calls.append((input_ids[:, 0].tolist(), attention_mask[:, 0].tolist()))
        return self.logits[input_ids[:, 0]]


def test_the_second_model_sees_the_unsure_rows_alone():
    sure, unsure, other = [5, 0], [0.1, 0], [0, 9]
    first, second = Recorded("int8", [sure, unsure, sure, unsure]), Recorded("fp32", [other] * 4)
    both = CascadePredictor(first, second, 0.9)
    rows = np.arange(4)[:, None]
    np.testing.assert_array_equal(both(rows, rows + 10), np.array([sure, other, sure, other], np.float32))
    assert first.calls == [([0, 1, 2, 3], [10, 11, 12, 13])]
    assert second.calls == [([1, 3], [11, 13])]
    both(rows[:1], rows[:1])
    assert (len(first.calls), len(second.calls)) == (2, 1)
    assert both.precision == "int8+fp32"
    assert CascadePredictor(first, first, 0.9).precision == "int8"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("tolerance", [0.0, 3.0, 100.0])
def test_the_threshold_is_the_smallest_that_keeps_f1(seed, classes, tolerance):
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, classes, 90)
    truth = np.eye(classes)[labels]
    first, second = (by * truth + chance.normal(size=truth.shape) for by in (1.0, 1.6))
    average = "binary" if classes == 2 else "macro"

    def f1(logits):
        return f1_score(labels, logits.argmax(-1), average=average)

    sure = confidence(first)
    every = [0.0, *np.nextafter(np.sort(sure), 2)]  # passes on 0, 1, 2, ... of the sentences
    floor = f1(second) - tolerance / 100
    expected = min(t for t in every if f1(np.where((sure < t)[:, None], second, first)) >= floor)
    threshold = choose_threshold(first, second, labels, tolerance)
    assert threshold == expected
    assert f1(cascaded(first, second, threshold)) >= floor
    if tolerance == 100:
        assert threshold == 0


def test_a_saturated_confidence_can_be_passed_on():
    first, second = np.array([[900.0, 0.0], [0.0, 900.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert (confidence(first) == 1).all()
    threshold = choose_threshold(first, second, np.array([1, 0]), 0.0)
    np.testing.assert_array_equal(cascaded(first, second, threshold), second)


def test_a_built_cascade_is_complete_without_the_models_it_was_built_of(models, ids, tmp_path):
    folder, result = built(models, tmp_path / "x")
    facts = result.details
    assert 0 < facts["passed_on"] < 1
    assert 0.9 <= facts["f1"] < facts["second_f1"] == 1
    artifact = read_artifact(folder)
    assert (artifact.parameters, artifact.nonzero_parameters) == (30, 27)
    sizes = [read_artifact(models / name).size for name in ("fast", "slow")]
    assert 0 < artifact.size - sum(sizes) < 10_000  # two artifact.json
    assert [name for name in artifact.files if "tokenizer" in name] == ["tokenizer.json", "tokenizer_config.json"]
    logits = predict(load(folder), ids)
    first, second = (predict(load(models / name), ids) for name in ("fast", "slow"))
    np.testing.assert_array_equal(logits, cascaded(first, second, facts["threshold"]))
    moved, hidden = folder.rename(tmp_path / "moved"), models.rename(tmp_path / "hidden")
    try:
        again = predict(load(moved), token_ids(load_tokenizer(moved, 16), TEXTS))
    finally:
        hidden.rename(models)
    np.testing.assert_array_equal(again, logits)


def test_damage_in_either_model_and_a_foreign_tokenizer_are_errors(models, tmp_path):
    with pytest.raises(UserError, match=r"foreign and the parent fast have different tokenizers \(tokenizer\.json\)"):
        built(models, tmp_path / "x", second="foreign")
    folder, _ = built(models, tmp_path / "x")
    path = folder / "second" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"second/model\.safetensors: damaged"):
        load(folder)


def test_the_service_loads_a_cascade_for_every_worker(models, ids, tmp_path):
    folder, _ = built(models, tmp_path / "x")
    (model,), (tokenizer,), (info,) = load_models([folder], Options(workers=2, threads=1))
    assert (info["backend"], info["precision"], model.name) == ("cascade", "fp32", "x")
    assert model.predictors[0] is not model.predictors[1]
    assert token_ids(tokenizer, TEXTS) == ids
    np.testing.assert_array_equal(predict(model.predictors[1], ids), predict(load(folder), ids))


def test_both_models_are_built_before_the_cascade():
    variant = next(v for v in PROFILE.variants if v.name == "cascade-2x384-int8")
    both = ["distill-2x384-ort-int8", "finetuned-ort-int8"]
    assert parents_of(PROFILE, variant) == both
    assert variant.scope == "full"
    needed = variants_to_build(PROFILE, "core", [variant.name])
    names = {v.name for v in needed}
    assert names == PROFILE.ancestors(variant.name) == {variant.name, *both, "distill-2x384", "finetuned"}
    assert PROFILE.is_trained(variant)
    text = makefile(PROFILE, needed, [0], "cpu")
    (rule,) = [line for line in text.splitlines() if line.startswith("build/minilm/seed0/cascade-2x384-int8/")]
    assert {f"build/minilm/seed0/{name}/record.json" for name in both} <= set(rule.split())
    sources = [Path(path).stem for path in sources_of(variant)]
    assert {"cascade", "two_stage"} <= set(sources)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('second = "finetuned-ort-fp32"', 'second = "other"', "cascade: second: no variant before it"),
        ('second = "finetuned-ort-fp32"', 'second = "finetuned-ort-int8"', "second: must be another variant"),
        ('second = "finetuned-ort-fp32", ', "", "cascades.variants.cascade.second: "),
    ],
)
def test_a_wrong_second_model_names_file_and_key(error_of_profile, old, new, key):
    assert key in error_of_profile("smoke", old, new)


# Of ten sentences the first model answers seven in 1 ms, the second one the others in 5 ms; the baseline needs 10 ms.
SECONDS = np.array([[0.001, 0.01]] * 7 + [[0.005, 0.01]] * 3)


def test_a_cascades_speedup_is_that_of_mean_times():
    passes = [SECONDS, SECONDS[2:]]
    assert paired_speedup(passes)[0] == pytest.approx(10)
    assert mean_speedup(passes) == pytest.approx((180 / 42, 80 / 20, 100 / 22))
    assert mean_speedup(passes[:1]) == (pytest.approx(100 / 22), None, None)


def test_rows_and_champions_use_the_mean_for_a_cascade_alone():
    arrays = {"latency_seconds": SECONDS, "text_seconds": 2 * SECONDS, "throughput_seconds": SECONDS[:1]}
    timed = [Measured(arrays, {"threads": 2, "throughput_sentences": 8})]
    variant = Cascade(name="both", method="cascade", parent=BASE, second="slow")
    row = time_columns(timed, speedup_of(record(variant, 0)))
    assert row["latency_speedup"] == row["text_latency_speedup"] == pytest.approx(100 / 22)
    assert row["latency_ms_p50"] == pytest.approx(1)
    assert row["throughput_speedup"] == pytest.approx(10)
    logits = {"logits/validation": np.eye(2), "logits/test": np.eye(2), "logits_batched/test": np.eye(2)}
    records = {BASE: record(SimpleNamespace(**about_of(BASE, "finetune")), 0), "both": record(variant, 0)}
    entries = {name: Entry(of, Measured(logits, {}), timed, None) for name, of in records.items()}
    seed = Seed(0, entries, {"validation": np.array([0, 1])}, [], ["a", "b"], {})
    found = candidates(SimpleNamespace(baseline=BASE), [seed], set(records))
    assert [c.latency_speedup for c in found] == pytest.approx([10, 100 / 22])


def about_of(name, method):
    """The fields of a variant that a record repeats."""
    about = {"name": name, "method": method, "parent": None, "chapter": "HW6", "family": "engine", "scope": "full"}
    return about | {"has_training": False, "model_dump": lambda mode: {}}


@pytest.mark.parametrize(("times", "non_inferior"), [(2.1, True), (2.1, False), (1.9, True), (None, True)])
def test_the_report_says_what_a_cascade_passes_on_and_whether_it_reached_its_aim(times, non_inferior):
    results = read_results(PROFILE)
    fast, slow = "distill-3x384-structured-50-ort-int8", "finetuned-ort-int8"  # two rows of the core
    name = "cascade-2x384-int8"
    first, second = (next(row for row in results.rows if row.variant == of) for of in (fast, slow))
    speed = times and times * second.latency_speedup
    row = replace(first, variant=name, method="cascade", chapter="HW6", parent=fast, seed=0, latency_speedup=speed)
    pooled = replace(next(row for row in results.seeds if row.variant == fast), variant=name, non_inferior=non_inferior)
    about = {"options": {"second": slow, "tolerance": 0.2}, "details": {"passed_on": 0.314}, "measured": {}}
    changed = replace(
        results,
        rows=[row for row in results.rows if row.variant != name] + [row],
        seeds=[row for row in results.seeds if row.variant != name] + [pooled],
        methods=results.methods | {name: about | {"seconds": 1.0}},
    )
    text = pages.finished(pages.page_templates(PROFILE, changed).get_template("chapters/combinations.md.j2").render())
    assert (
        f"`{name}` passes 31 % of the validation sentences on from `{fast}` to `{slow}` (tolerance 0.2 points)" in text
    )
    assert "Varshney and Baral 2022" in text
    if times is None:
        assert "the aim is" not in text
        return
    verdict = "reached" if times > 2 and non_inferior else "missed"
    assert f"Its speed is {times:.2f} times that of `{slow}` (the ratio of their" in text
    assert f"{'keeps' if non_inferior else 'does not keep'} the quality: the aim is {verdict}." in text
    if (times, non_inferior) == (2.1, True):
        report = pages.page_templates(PROFILE, changed).get_template("report.md.j2").render()
        assert "so its speed-up is the ratio of mean times" in report
        (line,) = [line for line in views.headline(changed) if line["name"].startswith(f"**{name}**")]
        base = next(row for row in changed.variants if row.variant == PROFILE.baseline)
        assert line["seconds"] == pytest.approx(base.latency_ms_p50 / speed / 1e3)


def test_pages_without_a_cascade_say_nothing_of_it():
    results = read_results(PROFILE)
    rows = [row for row in results.rows if row.method != "cascade"]
    templates = pages.page_templates(PROFILE, replace(results, rows=rows))
    assert "cascade" not in templates.get_template("chapters/combinations.md.j2").render()
