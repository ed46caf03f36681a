"""ONNX Runtime and OpenVINO against PyTorch on a tiny BERT, and the commands that use a model."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import timeit
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import openvino
import pytest
import torch
from compress.config.variants import Onnx
from compress.engines import ort, ov
from compress.engines.predictor import batches, load, predict
from compress.engines.pytorch import TorchPredictor
from compress.errors import UserError
from compress.measure.coldstart import measure_cold
from compress.measure.latency import time_shapes
from compress.methods import export
from compress.methods.engine_files import PARITY, check_parity
from compress.methods.onnx_files import export_onnx, fuse, quantize_onnx_dynamic, quantize_onnx_static
from compress.methods.onnx_int4 import quantize_onnx_int4
from compress.methods.openvino_files import compress_weights, post_training
from compress.provenance import machine
from conftest import ROOT, read_csv, run, save_model
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForSequenceClassification

PYTHON = ".venv/bin/python"
SEED0 = "build/smoke/seed0"
LENGTHS = [1, 2, 7, 33, 128, 512]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=200, initializer_range=0.3, **sizes)).eval()


@pytest.fixture(scope="module")
def ids():
    chance = np.random.default_rng(0)
    return [chance.integers(0, 200, chance.choice([5, 9, 9, 14])).tolist() for _ in range(40)]


@pytest.fixture(scope="module")
def files(model, ids, tmp_path_factory):
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("engines")
    export_onnx(model, folder / "plain.onnx")
    fuse(folder / "plain.onnx", folder / "fused.onnx")
    fuse(folder / "plain.onnx", folder / "half.onnx", half=True)
    quantize_onnx_dynamic(folder / "fused.onnx", folder / "dynamic.onnx")
    quantize_onnx_dynamic(folder / "fused.onnx", folder / "reduced.onnx", reduced_range=True)
    quantize_onnx_int4(folder / "plain.onnx", folder / "int4.onnx")
    for method in ("minmax", "percentile"):
        calibration = ids[:16] if method == "minmax" else [row for row in ids if len(row) == 9]
        quantize_onnx_static(folder / "plain.onnx", folder / f"{method}.onnx", calibration, method)
    quantize_onnx_static(folder / "plain.onnx", folder / "reduced-static.onnx", ids[:16], "minmax", reduced_range=True)
    openvino.save_model(openvino.convert_model(folder / "plain.onnx"), folder / "fp32.xml", compress_to_fp16=False)
    for name, smooth in (("smooth", True), ("int8", False)):
        quantized = post_training(openvino.convert_model(folder / "plain.onnx"), ids[:16], smooth)
        openvino.save_model(quantized, folder / f"{name}.xml", compress_to_fp16=False)
    return folder


def predictor(path, **properties):
    if path.suffix == ".onnx":
        return ort.OrtPredictor(ort.open_session(path, 2), "", 2)
    properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"} | properties
    return ov.OpenVINOPredictor(ov.compile_model(path, 2, properties))


def reference(model):
    return TorchPredictor(model, "cpu", "fp32", 2)


@pytest.mark.parametrize("name", ["plain.onnx", "fused.onnx", "fp32.xml"])
def test_fp32_files_have_pytorchs_logits_at_every_shape(files, model, name):
    engine, expected = predictor(files / name), reference(model)
    chance = np.random.default_rng(1)
    for batch in (1, 2, 33):
        for length in LENGTHS:
            input_ids = chance.integers(0, 200, (batch, length))
            mask = (np.arange(length) < chance.integers(1, length + 1, (batch, 1))).astype(np.int64)
            np.testing.assert_allclose(engine(input_ids, mask), expected(input_ids, mask), atol=1e-4)


ROUNDED = ["half", "dynamic", "reduced", "int4", "minmax", "percentile", "reduced-static"]


@pytest.mark.parametrize("name", [*(f"{name}.onnx" for name in ROUNDED), "int8.xml", "smooth.xml"])
def test_rounded_files_give_mostly_the_same_labels(files, model, ids, name):
    actual, expected = (predict(m, ids) for m in (predictor(files / name), reference(model)))
    assert np.mean(actual.argmax(1) == expected.argmax(1)) >= 0.8
    assert np.abs(actual - expected).max() > 1e-3, "nothing was rounded: a float32 file differs by 1e-4 at most"


def test_reduced_weights_have_seven_bits(files):
    names = ("reduced", "dynamic", "reduced-static", "minmax")
    graphs = {name: onnx.load(files / f"{name}.onnx").graph for name in names}
    largest = {
        name: max(
            np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max()
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
        )
        for name, graph in graphs.items()
    }
    assert largest == {"reduced": 64, "dynamic": 127, "reduced-static": 64, "minmax": 127}


def test_four_bit_weights_run_in_the_engines_kernel_and_equal_the_same_weights_in_floats(files, ids, tmp_path):
    ort.open_session(files / "int4.onnx", 1, tmp_path / "runs.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "runs.onnx").graph.node]
    # Six products with weights in each of two layers; three embedding tables.
    assert [kinds.count(kind) for kind in ("MatMulNBits", "GatherBlockQuantized")] == [12, 3]
    parts = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(files / "int4.onnx").graph.initializer}
    model = onnx.load(files / "plain.onnx")
    for tensor in [t for t in model.graph.initializer if f"{t.name}.codes" in parts]:
        packed, scales = parts[f"{tensor.name}.codes"], parts[f"{tensor.name}.scales"]
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, 32)
        rows = ((codes.astype(np.float32) - 8) * scales[..., None]).reshape(len(scales), -1)
        dense = rows if "embeddings" in tensor.name else np.ascontiguousarray(rows.T)
        original = onnx.numpy_helper.to_array(tensor)
        assert np.linalg.norm(dense - original) < 0.1 * np.linalg.norm(original), tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(dense, tensor.name))
    onnx.save(model, tmp_path / "dense.onnx")
    actual, expected = (predict(predictor(path), ids) for path in (files / "int4.onnx", tmp_path / "dense.onnx"))
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_operators_are_counted_in_the_engines_own_graph(files):
    facts = {name: ort.inspect_onnx(files / f"{name}.onnx") for name in ("plain", "fused", "half", "dynamic", "minmax")}
    assert [facts[name]["fused_attention"] for name in ("plain", "fused", "dynamic")] == [0, 2, 2]
    assert facts["plain"]["integer_products"] == facts["fused"]["integer_products"] == 0
    assert facts["dynamic"]["integer_products"] >= 8
    assert facts["dynamic"]["float_products"] == 0
    # Two products of activations in each of two layers stay float, the 14 with weights do not.
    assert facts["minmax"] | {"initializer_bytes": 0} == {
        "initializer_bytes": 0,
        "integer_products": 14,
        "float_products": 4,
        "half_products": 0,
        "fused_attention": 0,
    }
    precisions = {name: ort.onnx_precision(about) for name, about in facts.items()}
    assert precisions | {"half": ""} == dict.fromkeys(("plain", "fused"), "fp32") | {
        "half": "",
        "dynamic": "int8",
        "minmax": "int8",
    }
    weights = facts["plain"]["initializer_bytes"]["float"]
    assert facts["half"]["initializer_bytes"]["float16"] == pytest.approx(weights / 2, rel=0.01)
    assert facts["dynamic"]["initializer_bytes"]["float"] < 0.2 * weights
    compiled = {name: predictor(files / f"{name}.xml").compiled for name in ("fp32", "int8")}
    assert ov.inspect_openvino(files / "fp32.xml", compiled["fp32"])["integer_products"] == 0
    about = ov.inspect_openvino(files / "int8.xml", compiled["int8"])
    # Without AVX-512 the attention is no kernel of its own, and the first product of each is integer, too.
    assert about["integer_products"] == (14 if about["fused_attention"] else 16)
    assert about["properties"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert (predictor(files / "fp32.xml").precision, predictor(files / "int8.xml").precision) == ("fp32", "int8")


@pytest.mark.parametrize(("mode", "kind"), [("int8", "i8"), ("int4", "i4"), ("codebook", "u4")])
def test_files_with_rounded_weights_hold_every_matrix_in_the_bits_of_their_mode(tmp_path, ids, mode, kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=200, initializer_range=0.3, **sizes)).eval()
    export_onnx(model, tmp_path / "plain.onnx")
    rounded = compress_weights(openvino.convert_model(tmp_path / "plain.onnx"), mode)
    openvino.save_model(rounded, tmp_path / "rounded.xml", compress_to_fp16=False)
    constants = [node for node in rounded.get_ops() if node.get_type_name() == "Constant"]
    large = [node for node in constants if np.prod(node.get_output_shape(0)) >= 128]
    weights = Counter(node.get_element_type().get_type_name() for node in large)
    # Six matrices of the layer, three embedding tables, the pooler and the classifier.
    assert weights[kind] == 11
    assert not weights["f32"]
    actual, expected = (predict(m, ids) for m in (predictor(tmp_path / "rounded.xml"), reference(model)))
    assert np.mean(actual.argmax(1) == expected.argmax(1)) >= 0.8
    assert np.abs(actual - expected).max() > 1e-3
    exact = predictor(tmp_path / "rounded.xml", DYNAMIC_QUANTIZATION_GROUP_SIZE="0")
    if mode == "codebook" or "avx512_vnni" in machine("cpu")["cpu_flags"]:
        rounds_inputs = bool(np.abs(predict(exact, ids) - actual).max() > 0)
        assert rounds_inputs == (mode != "codebook") == (predictor(tmp_path / "rounded.xml").precision == "int8")


def test_a_throughput_model_returns_batches_in_order(files, ids):
    one, several = (predictor(files / "fp32.xml", PERFORMANCE_HINT=hint) for hint in ("LATENCY", "THROUGHPUT"))
    arrays = [rest for _, *rest in batches(ids, 4)]
    for actual, expected in zip(several.many(iter(arrays)), one.many(iter(arrays)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_property_that_openvino_rejects_is_an_error(files):
    with pytest.raises(UserError, match=r"fp32\.xml.*INFERENCE_NUM_THREADS|requested"):
        ov.compile_model(files / "fp32.xml", 2, {"INFERENCE_NUM_THREADS": 100_000})


def test_percentiles_are_calibrated_on_sentences_of_one_length(ids, monkeypatch):
    monkeypatch.setattr(export, "sentences", lambda _context, _split, count=None: ids[:count])
    chosen = export.calibration_ids(SimpleNamespace(calibration="percentile", calibration_sentences=10), None)
    assert {len(row) for row in chosen} == {9}
    assert all(row in ids for row in chosen)
    both = export.calibration_ids(SimpleNamespace(calibration="minmax", calibration_sentences=10), None)
    assert both == ids[:10]


def test_shapes_are_timed(files, ids):
    axes = SimpleNamespace(threads=[1, 2], batches=[1, 3], lengths=[4, 8, 16], calls=2)
    times = time_shapes(lambda threads: predictor(files / "plain.onnx"), ids, axes)
    assert times.shape == (2, 2, 3, 2)
    assert (times > 0).all()


@pytest.fixture
def folder(files, tmp_path):
    return onnx_folder(files / "fused.onnx", tmp_path, "fp32")


def onnx_folder(file, tmp_path, precision):
    """An artifact folder around an ONNX file."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    Tokenizer(models.WordPiece({"[UNK]": 0, "film": 1}, unk_token="[UNK]")).save(str(tokenizer / "tokenizer.json"))
    (tokenizer / "tokenizer_config.json").write_text("{}")
    about = {"backend": "onnxruntime", "runtime": {"precision": precision}}
    save_model(tmp_path / "x", lambda f: shutil.copy(file, f / ort.FILE), tokenizer, **about)
    return tmp_path / "x"


def edit(folder, **changes):
    path = folder / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_that_can_not_run_is_a_clear_error(folder, monkeypatch):
    assert load(folder, threads=2).precision == "fp32"
    with pytest.raises(UserError, match="runs on the CPU here, not on cuda"):
        load(folder, "cuda")
    edit(folder, backend="tensorrt")
    with pytest.raises(UserError, match="unknown 'tensorrt', known: cascade, numpy, onnxruntime, openvino, torch"):
        load(folder)
    edit(folder, backend="openvino")
    with pytest.raises(UserError, match=r"model\.xml: OpenVINO can't load it"):
        load(folder)
    edit(folder, backend="onnxruntime")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the library onnxruntime"):
        load(folder)
    (folder / ort.FILE).write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"model\.onnx: damaged or replaced"):
        load(folder)
    (folder / ort.FILE).unlink()
    with pytest.raises(UserError, match=r"model\.onnx: missing"):
        load(folder)


def test_predict_names_a_tokenizer_that_is_missing(folder):
    (folder / "tokenizer.json").unlink()
    done = run(folder, sys.executable, f"{ROOT}/scripts/predict.py", "--model", str(folder), "x")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "tokenizer.json: missing" in done.stderr


@pytest.mark.slow
def test_an_int8_student_answers_soon_after_its_start_in_little_memory(tmp_path):
    sizes = {"hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 6}
    network = BertForSequenceClassification(BertConfig(vocab_size=12000, **sizes)).eval()
    export_onnx(network, tmp_path / "fp32.onnx")
    quantize_onnx_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    student = onnx_folder(tmp_path / "int8.onnx", tmp_path, "int8")
    measure_cold(student, ["film"], "cpu", 1, tmp_path / "cold.npz")
    about = json.loads(str(np.load(tmp_path / "cold.npz")["about"]))
    assert about["load_seconds"] < 1
    assert about["peak_rss_bytes"] < 120e6
    seconds = timeit.repeat(lambda: run_predict(student, "echo film"), timer=children_seconds, number=1, repeat=3)
    assert min(seconds) < 0.7


def children_seconds():
    """CPU time, which other work on the machine hardly changes."""
    times = os.times()
    return times.children_user + times.children_system


def run_predict(folder, what, arguments=""):
    """predict.py in a shell, with the output of the command `what` as its standard input."""
    command = f"{what} | {sys.executable} scripts/predict.py --model {folder} {arguments}"
    return run(ROOT, "bash", "-o", "pipefail", "-c", command)


def test_predict_names_the_text_that_is_not_utf8(folder):
    done = run_predict(folder, r"printf 'a film\na sch\xf6n film\n'")
    message = "is not UTF-8 (byte 0xf6 after 5 others); convert the input: iconv -f ENCODING -t UTF-8"
    assert (done.returncode, done.stderr) == (1, f"error: line 2 {message}\n")
    assert [row["text"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["a film"]
    done = run_predict(folder, "true", r"film $'a sch\xf6n film'")
    assert (done.returncode, done.stderr) == (1, f"error: text 2 {message}\n")


def test_predict_reads_lines_of_any_editor(folder):
    done = run_predict(folder, r"printf '\xef\xbb\xbfa film\r\nfilm\nschön'")
    assert done.returncode == 0, done.stderr
    assert [row["text"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["a film", "film", "schön"]


def test_predict_with_closed_streams(folder):
    done = run_predict(folder, "true", "'a film' <&-")
    assert (done.returncode, done.stdout.splitlines()[1][:7], done.stderr) == (0, "a film,", "")
    assert run_predict(folder, "true", "'a film' <&- >&- 2>&-").returncode == 0
    done = run_predict(folder, "true", "<&-")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no texts: standard input is closed")
    done = run(
        ROOT, "bash", "-c", f"yes 'a film' | head -3000 | {PYTHON} scripts/predict.py --model {folder} | head -1"
    )
    assert (done.stdout, done.stderr) == ("text,label,score\n", "")


ODD = ["", "a" * 10_000, "Ein schöner Film", "映画はとても良かった", "фильм", "🎬🍿 wow!", '"quoted", with comma']


@pytest.mark.parametrize(
    "variant",
    ["finetuned", pytest.param("compiled-bf16", marks=pytest.mark.slow)],
)
def test_any_text_is_classified(smoke, variant):
    folder, _ = smoke
    command = (PYTHON, "scripts/predict.py", "--model", f"{SEED0}/{variant}")
    done = run(folder, *command, *ODD)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["text"] for row in rows] == ODD
    assert all(row["label"] in ("negative", "positive") and 0.5 <= float(row["score"]) <= 1 for row in rows)


OTHER_KINDS = "finetuned-ort-int8 finetuned-ort-int4 qat-int4-ort-fp16 ort-int8-static-percentile ov-int8-throughput"
OTHER_KINDS += " ov-int8-weights int8-dynamic bf16 tfidf static"


@pytest.mark.parametrize("variant", OTHER_KINDS.split())
def test_every_kind_of_model_runs_at_every_shape(smoke, variant):
    model = load(smoke[0] / SEED0 / variant, threads=2)
    for batch in (1, 2, 33):
        for length in LENGTHS:
            input_ids = np.full((batch, length), 2000)
            logits = model(input_ids, np.ones_like(input_ids))
            assert logits.shape == (batch, 2)
            assert logits.dtype == np.float32
            assert np.isfinite(logits).all()


def test_optimums_files_are_compared_with_pytorch_like_the_others(smoke):
    names = ("optimum-ort-o2", "optimum-ov-int8-weights")
    details = {name: json.loads((smoke[0] / SEED0 / name / "artifact.json").read_text())["details"] for name in names}
    assert details["optimum-ort-o2"]["largest_logit_difference"] <= PARITY
    assert 0 < details["optimum-ov-int8-weights"]["largest_logit_difference"] < 1
    with pytest.raises(UserError, match="more than"):
        check_parity({"largest_logit_difference": 2e-4})


def test_predict_reads_lines_and_writes_json_lines(smoke):
    folder, _ = smoke
    command = [PYTHON, "scripts/predict.py", "--profile", "smoke", "--model", "champion-tiny", "--format", "jsonl"]
    done = subprocess.run(command, cwd=folder, input="one film\n\nanother\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["one film", "", "another"]
    assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-3) for row in rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "nowhere", "x"], "nowhere: no model there"),
        (["--model", "Makefile", "x"], "Makefile: no model there"),
        (["--model", "scripts", "x"], "scripts: no model there"),
        (["--model", "x", "--batch-size", "0", "x"], "must be at least 1"),
        (["--model", "x", "--threads", "0", "x"], "must be at least 1"),
    ],
)
def test_predict_explains_errors(smoke, options, says):
    done = run(smoke[0], PYTHON, "scripts/predict.py", *options)
    assert done.returncode
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_card_of_a_model_holds_code_that_loads_it(smoke):
    folder, _ = smoke
    champions = json.loads((folder / "results/smoke/champions.json").read_text())
    chosen = champions["champion-tiny"]["chosen"]
    card = (folder / SEED0 / chosen / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    done = run(folder, PYTHON, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) >= 2
    row = next(row for row in read_csv(folder / "results/smoke/variants.csv") if row["variant"] == chosen)
    assert f"| {float(row['f1_test']):.4f} |" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8-static", "fused": False}, "calibration"),
        ({"precision": "fp32", "calibration": "minmax"}, "calibration"),
        ({"precision": "int8-static", "calibration": "minmax"}, "fused"),
        ({"precision": "fp16", "fused": False}, "fused"),
        ({"precision": "int4"}, "fused"),
    ],
)
def test_contradictory_engine_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Onnx.model_validate({"name": "x", "parent": "p", "method": "onnx"} | options)
