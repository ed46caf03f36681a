"""The whole graph on the smoke profile, from a fresh copy, through the commands that a user types."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from compress.config.profile import load_profile
from compress.data.card import FILE as CARD
from compress.data.card import load_splits
from compress.engines.pytorch import check_device
from compress.errors import UserError
from compress.graph import building
from compress.graph.building import Job, check_buildable, find
from compress.methods.made import made
from conftest import read_csv, run
from datasets import load_from_disk
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

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
    return {row["variant"]: row for row in read_csv(folder / "results/smoke/variants.csv")}


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


def test_the_stored_logits_are_those_of_the_ordinary_loader(smoke):
    folder, _ = smoke
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


def test_a_killed_training_resumes_and_ends_in_the_same_weights(copy):
    weights = copy / SEED0 / "finetuned/model.safetensors"
    expected = weights.read_bytes()
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
    assert weights.read_bytes() == expected


def test_a_killed_make_keeps_what_was_finished(copy):
    """Killed once while it evaluates, and once while it times."""
    kept, again = {}, []
    for pattern, variants in (("predictions.npz", "*-ort-*"), ("timing-0.npz", "*")):
        removed = sorted((copy / SEED0).glob(f"{variants}/{pattern}"))
        for path in removed:
            path.unlink()
        process = subprocess.Popen(
            ["make", "planned", "GOAL=timed", "PROFILE=smoke"],
            cwd=copy,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.time() + 600
        while not (finished := [path for path in removed if path.exists()]):
            assert time.time() < deadline
            assert process.poll() is None, "the phase ended before it could be killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept |= {path: path.stat().st_mtime_ns for path in finished}
        again += removed
        assert len(removed) > len(finished)
    assert step(copy, "timed").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert all(path.exists() for path in again)


def test_failures_of_a_build_and_an_evaluation_leave_a_reason_and_the_rest_goes_on(copy):
    profile = copy / "scripts/profiles/smoke.toml"
    text = profile.read_text()
    changed, broken = "distill-tiny", "cut-1x32"
    profile.write_text(text.replace("layers = [0, 1], hidden_size = 16", "layers = [0, 9], hidden_size = 16", 1))
    assert planned_builds(copy)[0] == changed
    make_infinite(copy / SEED0 / broken)
    done = make(copy, "all")
    assert done.returncode == 2
    assert f"{changed}: FAILED: student: layers: 9" in done.stdout
    assert f"{broken}: FAILED: its predictions are not finite" in done.stdout
    rows = table(copy)
    for name, reason in ((changed, "student: layers: 9"), (broken, "its predictions are not finite")):
        assert rows[name]["status"] == record(copy, name)["status"] == "failed"
        assert rows[name]["reason"].startswith(reason)
        assert rows[name]["f1_test"] == ""
        assert f"- `{name}` (failed): {reason}" in (copy / "report/smoke/report.md").read_text("utf-8")
    children = [name for name, row in rows.items() if row["parent"] == changed]
    assert children
    for name in children:
        assert rows[name]["status"] == "skipped"
        assert f"parent {changed} was failed" in rows[name]["reason"]
    assert rows["finetuned"]["status"] == "ok"
    profile.write_text(text)
    assert {changed, broken} <= set(planned_builds(copy))


def make_infinite(folder):
    """Puts a NaN into a model's weights, so that its predictions are not finite."""
    weights, about = folder / "model.safetensors", json.loads((folder / "artifact.json").read_text())
    tensors = load_file(weights)
    tensors["classifier.bias"][0] = np.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    about["files"][weights.name]["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "artifact.json").write_text(json.dumps(about))


def test_a_damaged_parent_is_not_learned_from(copy, monkeypatch):
    path = copy / SEED0 / "distill-tiny/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # same size
    path.write_bytes(data)
    monkeypatch.setattr("compress.config.profile.ROOT", copy)
    profile = load_profile("smoke")
    child = next(v for v in profile.variants if v.parent == "distill-tiny")
    with pytest.raises(UserError, match=r"distill-tiny/model\.safetensors: damaged or replaced"):
        check_buildable(Job(profile, child, 0, "cpu", "cpu", None, [], ""))
    assert "distill-tiny" in planned_builds(copy)


def test_weights_that_are_not_finite_are_not_saved():
    model = torch.nn.Linear(2, 2)
    model.bias.data[0] = torch.inf
    with pytest.raises(UserError, match="not finite: bias"):
        made(model, None)


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


def test_damaged_records_and_models_are_named_and_built_again(copy):
    files = {"finetuned": "model.safetensors", "tfidf": "record.json"}
    for name, file in files.items():
        truncate(copy / SEED0 / name / file)
    printed = make(copy, "-n", "all").stdout
    reasons = {"finetuned": "is missing or has another size", "tfidf": "damaged or truncated record"}
    for name, reason in reasons.items():
        assert re.search(rf"{name} will be built again: .*{files[name]}:? {reason}", printed)
        assert not (copy / SEED0 / name / "record.json").exists()
    planned = planned_builds(copy)
    assert planned[0] == "finetuned"
    assert "tfidf" in planned


def test_damaged_predictions_and_times_are_named_and_measured_again(copy):
    expected = logits(copy, "finetuned")
    paths = [copy / SEED0 / "finetuned" / file for file in ("predictions.npz", "timing-1.npz")]
    for path in paths:
        truncate(path)
    done = step(copy, "timed")
    assert done.returncode == 0, done.stderr[-2000:]
    for path in paths:
        assert f"finetuned will be measured again: {path} was damaged" in done.stdout
        assert path.stat().st_size > 200
    np.testing.assert_array_equal(logits(copy, "finetuned"), expected)


def test_a_second_seed_is_added_without_the_models_of_the_first(copy):
    results = copy / "results/smoke"
    first = {path: path.read_bytes() for path in results.glob("*")}
    shutil.rmtree(copy / "build/smoke")
    for path in first:
        if path.name != "seed0.npz" and not path.name.startswith("serv"):
            path.unlink()
    done = run(copy, PYTHON, "scripts/collate.py", "--profile", "smoke")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.read_bytes() for path in results.glob("*")} == first
    assert run(copy, PYTHON, "scripts/prepare_data.py", "--profile", "smoke", "--seeds", "1").returncode == 0
    assert run(copy, PYTHON, "scripts/01_finetune.py", "--profile", "smoke", "--seed", "1", "finetuned").returncode == 0
    assert run(copy, PYTHON, "scripts/evaluate_variants.py", "--profile", "smoke", "--seed", "1").returncode == 0
    done = run(copy, PYTHON, "scripts/collate.py", "--profile", "smoke", "--seeds", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (results / "seed0.npz").read_bytes() == first[results / "seed0.npz"]
    seeds = {row["variant"]: row for row in read_csv(results / "seeds.csv")}
    f1 = [float(row["f1_test"]) for row in read_csv(results / "variants.csv") if row["variant"] == "finetuned"]
    assert len(f1) == 2
    assert seeds["finetuned"]["seeds"] == "2"
    assert float(seeds["finetuned"]["f1_mean"]) == pytest.approx(sum(f1) / 2, abs=1e-6)
    assert run(copy, PYTHON, "scripts/render.py", "--profile", "smoke").returncode == 0


def test_damaged_and_other_data_are_named_and_prepared_again(copy, monkeypatch):
    data = copy / "build/smoke/data"
    monkeypatch.setattr("compress.config.profile.ROOT", copy)
    splits = load_splits(load_profile("smoke"), 0)
    splits["test"] = splits["test"].map(lambda row: {"label": 1 - row["label"]})
    splits.save_to_disk(str(data / "other"))
    shutil.rmtree(data / "seed0/splits")
    (data / "other").rename(data / "seed0/splits")
    with pytest.raises(UserError, match=r"splits: the sentences are not those of data\.json"):
        load_splits(load_profile("smoke"), 0)
    shutil.rmtree(data / "seed0/splits")
    with pytest.raises(UserError, match="splits: damaged"):
        load_splits(load_profile("smoke"), 0)
    shutil.rmtree(data)  # as the message says
    assert "scripts/prepare_data.py" in make(copy, "-n", "data").stdout


def test_a_checkpoint_of_other_inputs_or_older_code_is_never_resumed(tmp_path, monkeypatch):
    profile = load_profile("smoke")
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    code = tmp_path / "method.py"
    monkeypatch.setattr(building, "sources_of", lambda _: [code])
    variants = {variant.name: variant for variant in profile.variants}
    card, parent = profile.data_folder(0) / CARD, profile.variant_folder(profile.baseline) / "artifact.json"
    for path in (code, card, parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    job = Job(profile, variants["prune-fisher-70"], 0, "cpu", "cpu", {}, ["no", "yes"], "0" * 64)

    def is_kept(job) -> bool:
        checkpoint = job.context.work / "checkpoint-5"
        checkpoint.mkdir(parents=True, exist_ok=True)
        building.clear_if_changed(job, job.context)
        return checkpoint.exists()

    assert not is_kept(job)
    assert is_kept(job)
    for change in (
        {"sparsity": 0.71},
        {"threads": 2},
        {"training": job.variant.training.model_copy(update={"epochs": 3.0})},
    ):
        assert not is_kept(replace(job, variant=job.variant.model_copy(update=change))), change
        assert not is_kept(job)
    for other in (replace(job, fingerprint="1" * 64), replace(job, train_device="cuda")):
        assert not is_kept(other)
        assert not is_kept(job)
    parent.write_text("{ }")
    assert not is_kept(job)
    for path in (code, card):
        written = (job.context.work / building.INPUTS).stat().st_mtime
        os.utime(path, (written + 1, written + 1))
        assert not is_kept(job), path
        os.utime(path, (written - 1, written - 1))
        assert is_kept(job)


def test_errors_that_a_user_meets(smoke):
    folder, _ = smoke
    finetune = (PYTHON, "scripts/01_finetune.py", "--profile", "smoke")
    assert "unknown profile" in run(folder, PYTHON, "scripts/01_finetune.py", "--profile", "x", "finetuned").stderr
    assert "unknown PROFILE 'x': choose one of base bert-base " in run(folder, "make", "all", "PROFILE=x").stderr
    assert "unknown SCOPE 'x': choose core or full" in run(folder, "make", "all", "SCOPE=x").stderr
    assert "SEEDS '0 x': whole numbers" in run(folder, "make", "all", "SEEDS=x 0").stderr
    assert "no nopython: install Python" in run(folder, "make", "all", "PYTHON=nopython").stderr
    assert "must be 0 or more" in run(folder, *finetune, "--seed", "-1", "finetuned").stderr
    with pytest.raises(UserError, match="profile smoke has no variant 'x' for this script; it has: finetuned"):
        find(load_profile("smoke"), "x", {"finetune": None})
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA GPU"):
            check_device("cuda")
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
