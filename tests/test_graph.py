"""The whole graph on the smoke profile, from a fresh copy, through the commands that a user types."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from compress.config.profile import load_profile
from compress.errors import UserError
from compress.methods.made import made
from compress.storage.artifact import TOKENIZER_FILES
from conftest import run
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score

PYTHON = ".venv/bin/python"
SEED0 = "build/smoke/seed0"


def make(folder, *goals, **environment):
    return run(folder, "make", *goals, "PROFILE=smoke", **environment)


def step(folder, goal):
    """One phase of `make all`: models, evaluated, timed or collated."""
    return make(folder, "planned", f"GOAL={goal}")


def planned_builds(folder):
    """Names of the variants that `make all` would build now."""
    done = make(folder, "-n", "all")
    assert done.returncode == 0, done.stderr[-2000:]
    return re.findall(r"--number '\[\d+/\d+\]' (\S+)", done.stdout)


def logits(folder, variant):
    with np.load(folder / SEED0 / variant / "predictions.npz") as file:
        return file["logits/test"]


def record(folder, variant):
    return json.loads((folder / SEED0 / variant / "record.json").read_text())["record"]


def table(folder):
    with open(folder / "results/smoke/variants.csv", newline="") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


@pytest.fixture
def copy(smoke, tmp_path):
    """The finished smoke run, to be damaged."""
    shutil.copytree(smoke[0], tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def test_the_graph_ends_in_tables_a_report_and_figures(smoke):
    folder, output = smoke
    rows = table(folder)
    statuses = {name: row["status"] for name, row in rows.items()}
    assert list(statuses) == [variant.name for variant in load_profile("smoke").variants]
    assert {name for name, status in statuses.items() if status != "ok"} == {"torchao-int4-weight-only"}
    assert rows["torchao-int4-weight-only"]["reason"].startswith("torchao")
    assert re.search(r"\[\d+/\d+\] finetuned: started\n", output)
    assert re.search(r"\[\d+/\d+\] finetuned: built in \d+ s, \d+\.\d\d MB\n", output)
    assert re.search(r"finetuned: evaluated in \d+ s, validation F1 0\.\d{4}\n", output)
    assert "Traceback" not in output
    for name in ("report/smoke/report.md", "report/smoke/report.html", "report/smoke/report.tex"):
        text = (folder / name).read_text("utf-8")
        assert len(text) > 1000
        assert str(folder) not in text, f"{name} contains the path of the clone"
    assert {path.stem for path in (folder / "figures/smoke").glob("*.pdf")} >= {"f1_vs_size", "f1_vs_latency"}
    assert not [path for path in (folder / "build").rglob("*.partial")]
    assert not list((folder / SEED0 / "work").iterdir())


def test_a_number_of_the_table_can_be_traced_to_the_raw_logits_and_times(smoke):
    folder, _ = smoke
    from datasets import load_from_disk

    labels = load_from_disk(str(folder / "build/smoke/data/seed0/splits"))["test"]["label"][:]
    for name, row in table(folder).items():
        if row["status"] != "ok":
            continue
        assert float(row["f1_test"]) == pytest.approx(f1_score(labels, logits(folder, name).argmax(1)), abs=1e-5)
        listed = json.loads((folder / SEED0 / name / "artifact.json").read_text())["files"]
        bytes_ = sum((folder / SEED0 / name / file).stat().st_size for file in listed if file not in TOKENIZER_FILES)
        assert float(row["size_mb"]) == pytest.approx(bytes_ / 1e6, rel=1e-5)
        if row["latency_speedup"]:
            passes = [np.load(path)["latency_seconds"] for path in sorted((folder / SEED0 / name).glob("timing-*.npz"))]
            assert len(passes) == load_profile("smoke").measure.passes
            seconds = np.concatenate(passes)
            assert float(row["latency_speedup"]) == pytest.approx(np.median(seconds[:, 1] / seconds[:, 0]), rel=1e-4)
            assert float(row["latency_ms_p50"]) == pytest.approx(1e3 * np.median(seconds[:, 0]), rel=1e-4)


def test_the_seed_file_alone_gives_the_same_tables(copy):
    results = copy / "results/smoke"
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    for path in results.iterdir():
        if path.name != "seed0.npz" and not path.name.startswith("serv"):
            path.unlink()
    shutil.rmtree(copy / "build/smoke")
    done = run(copy, PYTHON, "scripts/collate.py", "--profile", "smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before


def test_the_stored_logits_are_those_of_the_ordinary_loader(smoke):
    folder, _ = smoke
    from datasets import load_from_disk
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model_folder = folder / SEED0 / "finetuned"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    texts = load_from_disk(str(folder / "build/smoke/data/seed0/splits"))["test"]["text"][:20]
    with torch.inference_mode():
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        expected = model(**batch).logits.numpy()
    np.testing.assert_allclose(logits(folder, "finetuned")[:20], expected, atol=1e-5)


def test_a_second_run_does_nothing_quickly(smoke):
    folder, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in (folder / SEED0).glob("*/*")}
    started = time.perf_counter()
    done = make(folder, "all")
    assert done.returncode == 0
    assert time.perf_counter() - started < 5
    assert "scripts/" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / SEED0).glob("*/*")} == before


def test_an_edit_rebuilds_what_depends_on_it_and_nothing_else(copy):
    assert planned_builds(copy) == []
    profile = load_profile("smoke")
    os.utime(copy / "scripts/compress/methods/cluster.py")
    of_cluster = {v.name for v in profile.variants if v.module == "cluster"}
    children = {v.name for v in profile.variants if of_cluster & profile.ancestors(v.name)}
    assert set(planned_builds(copy)) == children
    os.utime(copy / "scripts/compress/methods/cluster.py", (0, 0))
    for path in (copy / "scripts/compress/report").glob("*.py"):
        os.utime(path)
    done = make(copy, "-n", "all")
    assert "scripts/figures.py" in done.stdout
    assert not re.search(r"scripts/(0\d_|evaluate|time|collate)", done.stdout)
    text = (copy / "scripts/profiles/smoke.toml").read_text()
    structured = "structured-50"
    old = f'{structured} = {{ method = "structured", heads = 0.5'
    assert old in text
    (copy / "scripts/profiles/smoke.toml").write_text(text.replace(old, old.replace("0.5", "0.4")))
    assert set(planned_builds(copy)) == {v.name for v in profile.variants if structured in profile.ancestors(v.name)}


def test_a_killed_training_resumes_and_ends_in_the_same_logits(copy):
    expected = logits(copy, "finetuned")
    shutil.rmtree(copy / SEED0 / "finetuned")
    command = (PYTHON, "scripts/01_finetune.py", "--profile", "smoke", "finetuned")
    process = subprocess.Popen(command, cwd=copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((copy / SEED0 / "work").glob("*/checkpoint-*/trainer_state.json")):
        assert time.time() < deadline
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (copy / SEED0 / "finetuned").exists()
    assert run(copy, *command).returncode == 0
    assert "resume" in (copy / SEED0 / "logs/finetuned.log").read_text().lower()
    done = run(copy, PYTHON, "scripts/evaluate_variants.py", "--profile", "smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(logits(copy, "finetuned"), expected)


@pytest.mark.parametrize(("goal", "pattern"), [("evaluated", "predictions.npz"), ("timed", "timing-0.npz")])
def test_a_killed_make_keeps_what_was_finished(copy, goal, pattern):
    for path in (copy / SEED0).glob(f"*/{pattern}"):
        path.unlink()
    process = subprocess.Popen(
        ["make", "planned", f"GOAL={goal}", "PROFILE=smoke"],
        cwd=copy,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 120
    while not (finished := list((copy / SEED0).glob(f"*/{pattern}"))):
        assert time.time() < deadline
        assert process.poll() is None, "the phase ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in finished}
    assert step(copy, goal).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    assert len(list((copy / SEED0).glob(f"*/{pattern}"))) > len(finished)


def test_a_failed_variant_leaves_a_reason_and_the_rest_goes_on(copy):
    profile = copy / "scripts/profiles/smoke.toml"
    text = profile.read_text()
    changed = "distill-tiny"
    profile.write_text(text.replace("layers = [0, 1], hidden_size = 16", "layers = [0, 9], hidden_size = 16", 1))
    assert planned_builds(copy)[0] == changed
    done = make(copy, "all")
    assert done.returncode == 2
    assert f"{changed}: FAILED: student: layers: 9" in done.stdout
    rows = table(copy)
    assert rows[changed]["status"] == "failed"
    assert rows[changed]["reason"].startswith("student: layers: 9")
    assert rows[changed]["f1_test"] == ""
    children = [name for name, row in rows.items() if row["parent"] == changed]
    assert children
    for child in children:
        assert rows[child]["status"] == "skipped"
        assert f"parent {changed} was failed" in rows[child]["reason"]
    assert rows["finetuned"]["status"] == "ok"
    assert changed in (copy / "report/smoke/report.md").read_text("utf-8")
    profile.write_text(text)
    assert changed in planned_builds(copy)


def test_two_runs_at_once_are_refused(copy):
    lock = subprocess.Popen(
        [PYTHON, "scripts/with_lock.py", "build/.lock", "sleep", "60"], cwd=copy, stdout=subprocess.DEVNULL
    )
    try:
        while lock.poll() is None and not (copy / "build/.lock").read_text():
            time.sleep(0.01)
        done = make(copy, "all")
        assert done.returncode == 2
        assert f"another run (process {lock.pid}) is at work in this clone" in done.stderr
    finally:
        lock.kill()
        lock.wait()


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("record.json", "damaged or truncated record"),
        ("model.safetensors", "has another size"),
        ("predictions.npz", "measured again"),
        ("timing-1.npz", "measured again"),
    ],
)
def test_damaged_files_are_named_and_made_again(copy, file, says):
    path = copy / SEED0 / "finetuned" / file
    expected = logits(copy, "finetuned")
    truncate(path)
    goal = "models" if file in ("record.json", "model.safetensors") else "timed"
    if goal == "models":
        assert planned_builds(copy)[0] == "finetuned"
        done = run(copy, PYTHON, "scripts/plan.py", "--profile", "smoke")
        assert not (copy / SEED0 / "finetuned/record.json").exists()
        return
    done = step(copy, goal)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{path}" in done.stdout
    assert says in done.stdout
    np.testing.assert_array_equal(logits(copy, "finetuned"), expected)
    assert path.stat().st_size > 200


def test_an_edited_record_is_refused(copy):
    path = copy / SEED0 / "bert-orig/record.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    done = run(copy, PYTHON, "scripts/collate.py", "--profile", "smoke")
    assert done.returncode == 1
    assert "bert-orig/record.json: the record was altered" in done.stderr


def test_predictions_of_another_model_are_refused(copy):
    shutil.copy(copy / SEED0 / "bert-orig/predictions.npz", copy / SEED0 / "finetuned/predictions.npz")
    done = run(copy, PYTHON, "scripts/collate.py", "--profile", "smoke")
    assert done.returncode == 1
    assert "finetuned/predictions.npz" in done.stderr


def test_a_damaged_parent_is_not_learned_from(copy):
    seed = copy / SEED0
    path = seed / "distill-tiny/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # same size
    path.write_bytes(data)
    child = next(v for v in load_profile("smoke").variants if v.parent == "distill-tiny")
    shutil.rmtree(seed / child.name)
    done = run(copy, PYTHON, f"scripts/{child.script}", "--profile", "smoke", child.name)
    assert done.returncode == 0
    assert "distill-tiny/model.safetensors: damaged or replaced" in record(copy, child.name)["reason"]
    assert "distill-tiny" in planned_builds(copy)


def test_predictions_that_are_not_finite_are_a_failure(copy):
    folder = copy / SEED0 / "cut-1x32"
    weights, about = folder / "model.safetensors", json.loads((folder / "artifact.json").read_text())
    tensors = load_file(weights)
    tensors["classifier.bias"][0] = np.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    about["files"][weights.name]["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "artifact.json").write_text(json.dumps(about))
    done = run(copy, PYTHON, "scripts/evaluate_variants.py", "--profile", "smoke")
    assert done.returncode == 0, "one failure must not keep the others from being timed and collated"
    assert "cut-1x32: FAILED: its predictions are not finite" in done.stdout
    assert record(copy, "cut-1x32")["status"] == "failed"
    model = torch.nn.Linear(2, 2)
    model.bias.data[0] = torch.inf
    with pytest.raises(UserError, match="not finite: bias"):
        made(model, None)


def test_a_second_seed_is_added_without_touching_the_first(copy):
    first = (copy / "results/smoke/seed0.npz").read_bytes()
    assert run(copy, PYTHON, "scripts/prepare_data.py", "--profile", "smoke", "--seeds", "1").returncode == 0
    assert run(copy, PYTHON, "scripts/01_finetune.py", "--profile", "smoke", "--seed", "1", "finetuned").returncode == 0
    assert run(copy, PYTHON, "scripts/evaluate_variants.py", "--profile", "smoke", "--seed", "1").returncode == 0
    done = run(copy, PYTHON, "scripts/collate.py", "--profile", "smoke", "--seeds", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (copy / "results/smoke/seed0.npz").read_bytes() == first
    with open(copy / "results/smoke/seeds.csv", newline="") as file:
        seeds = {row["variant"]: row for row in csv.DictReader(file)}
    with open(copy / "results/smoke/variants.csv", newline="") as file:
        f1 = [float(row["f1_test"]) for row in csv.DictReader(file) if row["variant"] == "finetuned"]
    assert len(f1) == 2
    assert seeds["finetuned"]["seeds"] == "2"
    assert float(seeds["finetuned"]["f1_mean"]) == pytest.approx(sum(f1) / 2, abs=1e-6)
    assert run(copy, PYTHON, "scripts/render.py", "--profile", "smoke").returncode == 0


def test_damaged_data_are_named_and_prepared_again(copy):
    shutil.rmtree(copy / "build/smoke/data/seed0/splits")
    done = run(copy, PYTHON, "scripts/01_finetune.py", "--profile", "smoke", "finetuned")
    assert "splits: damaged" in done.stderr + done.stdout
    shutil.rmtree(copy / "build/smoke/data")  # as the message says
    assert make(copy, "data").returncode == 0
    assert (copy / "build/smoke/data/seed0/splits").exists()


def test_errors_that_a_user_meets(smoke):
    folder, _ = smoke
    finetune = (PYTHON, "scripts/01_finetune.py", "--profile", "smoke")
    assert "unknown profile" in run(folder, PYTHON, "scripts/01_finetune.py", "--profile", "x", "finetuned").stderr
    assert "unknown PROFILE 'x': choose one of base bert-base " in run(folder, "make", "all", "PROFILE=x").stderr
    assert "unknown SCOPE 'x': choose core or full" in run(folder, "make", "all", "SCOPE=x").stderr
    assert "SEEDS '0 x': whole numbers" in run(folder, "make", "all", "SEEDS=x 0").stderr
    assert "no nopython: install Python" in run(folder, "make", "all", "PYTHON=nopython").stderr
    assert "must be 0 or more" in run(folder, *finetune, "--seed", "-1", "finetuned").stderr
    unknown = run(folder, *finetune, "x").stderr
    assert "no variant 'x'" in unknown
    assert "finetuned" in unknown
    if not torch.cuda.is_available():
        assert "no CUDA GPU" in run(folder, *finetune, "--device", "cuda", "finetuned").stderr
    bare = run(folder, PYTHON, "scripts/recommend.py", "--profile", "smoke", PYTHONPATH="")
    assert bare.returncode == 0, bare.stderr


def test_the_report_without_results_says_what_to_run(copy):
    shutil.rmtree(copy / "results/smoke")
    done = make(copy, "report")
    assert done.returncode == 2
    assert "PROFILE=smoke" in done.stderr


def test_the_baseline_against_itself_takes_the_same_time(smoke):
    row = table(smoke[0])["finetuned"]
    assert float(row["f1_drop_points"]) == 0
    assert float(row["size_ratio"]) == 1
    assert 0.9 < float(row["latency_speedup"]) < 1.1  # the tolerance of a busy machine; the report's rows are closer
