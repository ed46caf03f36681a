"""The whole graph on the smoke profile, from a fresh copy, through the commands that a user types."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from compress import forked
from compress.cli import cores
from compress.config.profile import load_profile
from compress.errors import UserError
from compress.files import digest, sha256_file
from compress.loadtest import generator as load
from compress.loadtest.bench import ABLATIONS, is_void, read_run
from compress.measure import protocol as measure
from compress.results.reading import TIMES, without_disturbed_times
from compress.stage import made
from compress.storage.artifact import TOKENIZER_FILES
from conftest import run
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score

PYTHON = ".venv/bin/python"
FINETUNE = (PYTHON, "scripts/01_finetune.py", "--profile", "smoke")
TIMED = {"latency_seconds": "latency_speedup", "throughput_seconds": "throughput_speedup"}
COLLATE = (PYTHON, "scripts/collate.py", "--profile", "smoke")


def logits(folder, variant):
    with np.load(folder / "build/smoke/predictions" / f"{variant}.npz") as file:
        return file["logits/test"]


def table(folder):
    with open(folder / "results/smoke/variants.csv", newline="") as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


@pytest.fixture
def copy(smoke, tmp_path):
    """The finished smoke run, to be damaged."""
    shutil.copytree(smoke[0], tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def test_the_graph_ends_in_a_table_a_report_and_figures(smoke):
    folder, output = smoke
    assert "F1_test" in output
    rows = table(folder)
    statuses = {name: row["status"] for name, row in rows.items()}
    assert list(statuses) == [variant.name for variant in load_profile("smoke").variants]
    assert {name for name, status in statuses.items() if status != "ok"} == {"torchao-int4-weight-only"}
    assert rows["torchao-int4-weight-only"]["reason"].startswith("torchao")
    for name in ("report/smoke/report.md", "report/smoke/report.html", "report/smoke/report.tex"):
        text = (folder / name).read_text("utf-8")
        assert len(text) > 1000
        assert str(folder) not in text, f"{name} says where the clone lies"
    figures = {path.stem for path in (folder / "figures/smoke").glob("*.pdf")}
    assert figures >= {"f1_vs_size", "f1_vs_latency", "sparsity", "sensitivity_mixed-precision"}
    assert figures >= {"grid", "ablation_champion-balanced", "shapes_champion-balanced"}
    assert not [path for path in (folder / "build").rglob("*.partial")]


def test_a_number_of_the_table_can_be_traced_to_the_raw_logits(smoke):
    folder, _ = smoke
    from datasets import load_from_disk

    labels = load_from_disk(str(folder / "build/smoke/data/splits"))["test"]["label"][:]
    no_weights = ("artifact.json", "README.md", "measured.json", *TOKENIZER_FILES)
    for name, row in table(folder).items():
        if row["status"] == "skipped":
            continue
        assert float(row["f1_test"]) == pytest.approx(f1_score(labels, logits(folder, name).argmax(1)), abs=1e-5)
        files = (folder / "build/smoke/models" / name).iterdir()
        bytes_ = sum(file.stat().st_size for file in files if file.name not in no_weights)
        assert float(row["size_mb"]) == pytest.approx(bytes_ / 1e6, rel=1e-5)


def test_the_table_can_be_worked_out_from_the_answers_beside_it(smoke):
    rows = table(smoke[0])
    with np.load(smoke[0] / "results/smoke/answers.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    names = list(found["0/variants"])
    assert names == [name for name, row in rows.items() if row["status"] == "ok"]
    baseline = found["0/test"][names.index("finetuned")]
    for name, *answers in zip(names, *(found[f"0/{kind}"] for kind in ("test", "batched_test", "tweets")), strict=True):
        alone, batched, tweets = answers
        f1, base = (f1_score(found["labels/test"], given) for given in (alone, baseline))
        worked_out = {
            "f1_test": f1,
            "f1_tweets": f1_score(found["labels/tweets"], tweets),
            "f1_drop_points": 100 * (base - f1),
            "flip_rate": np.mean(alone != baseline),
            "batch_flip_rate": np.mean(alone != batched),
        }
        assert {column: float(rows[name][column]) for column in worked_out} == pytest.approx(worked_out, abs=1e-4)
    for name, *times in zip(*(found[f"0/{kind}"] for kind in ("timed", *TIMED)), strict=True):
        for column, seconds in zip(TIMED.values(), times, strict=True):
            speedup = np.median(seconds[:, 1] / seconds[:, 0])
            assert float(rows[name][column]) == pytest.approx(speedup, rel=1e-4)
    assert len(found["0/timed"]) == sum(bool(row["latency_speedup"]) for row in rows.values())


def test_what_is_compiled_answers_where_it_is_timed(smoke):
    with np.load(smoke[0] / "build/smoke/predictions/compiled-fp32.npz") as file:
        assert {"latency_seconds", "logits/validation", "answer_key"} <= set(file.files)
        assert file["answer_seconds"] == 0
        answers = file["logits/test"]
    np.testing.assert_allclose(answers, logits(smoke[0], "distill-1x32"), atol=1e-4)


def test_the_benchmark_can_be_traced_to_the_raw_latencies(smoke):
    folder, _ = smoke
    with open(folder / "results/smoke/serving.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    serving = load_profile("smoke").serving
    servers = {*serving.variants, "five-services", *(f"{serving.ablated}-{what}" for what in ABLATIONS)}
    assert {row["variant"] for row in rows} == servers
    assert {row["layout"] for row in rows} == {"saturation", "open-loop", "clients-1", "clients-10", "clients-50"}
    for row in rows:
        share = f"{float(row['share']):.4g}"
        (path,) = (folder / "build/smoke/serving" / row["variant"]).glob(f"{row['layout']}-{share}-*.npz")
        with np.load(path) as file:
            latency, status, lag = file["latency"], file["status"], file["lag"]
            about = json.loads(str(file["about"]))
        if np.quantile(lag, 0.99) > 0.005:
            assert "void" in row["reason"]
            assert row["goodput_rps"] == ""
            continue
        good = (status == 200) & (latency <= serving.load.deadline_ms / 1000)
        assert float(row["goodput_rps"]) == pytest.approx(good.sum() / about["seconds"], rel=1e-4)
        assert float(row["latency_ms_p99"]) == pytest.approx(1000 * np.quantile(latency[status == 200], 0.99), rel=1e-4)
        # On a busy machine deadlines pass, and far beyond saturation there are more connections than the service takes.
        assert set(status.tolist()) <= {load.LOST, 200, 429, 503, 504}
        assert float(row["error_fraction"]) == pytest.approx(np.mean((status != 200) & (status != 429)), abs=1e-5)
    with open(folder / "results/smoke/services.csv", newline="") as file:
        services = {row["variant"]: row for row in csv.DictReader(file)}
    assert {row["classes"] for row in services.values()} == {"2", "4"}
    assert all(float(row["batch_flip_rate"]) == 0 for row in services.values())


def test_results_are_those_of_the_profile_and_the_models_that_are_there(copy):
    profile, artifact = copy / "scripts/profiles/smoke.toml", copy / "build/smoke/models/cluster-8/artifact.json"
    text, about = profile.read_text(), artifact.read_text()
    profile.write_text(text.replace("sparsity = 0.7\n", "sparsity = 0.6\n", 1))
    assert "prune-oneshot-70: made by other options than profile smoke has now" in run(copy, *COLLATE).stderr
    profile.write_text(text)
    artifact.write_text(json.dumps(json.loads(about) | {"key": "made anew"}))
    done = run(copy, *COLLATE)
    assert done.returncode == 1
    assert "cluster-8.json: measured before" in done.stderr


def test_what_a_training_leaves_behind_is_removed_and_nothing_of_its_like_named_neighbours(copy):
    checkpoints = copy / "build/smoke/checkpoints"
    names = [f"distill-labels{middle}-{'0' * 12}" for middle in ("", "-seed1", "-ort-int8")]
    for name in names:
        (checkpoints / name).mkdir(parents=True)
    shutil.rmtree(copy / "build/smoke/models/distill-labels")
    assert run(copy, PYTHON, "scripts/04_distill.py", "--profile", "smoke", "--only", "distill-labels").returncode == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(names[1:])


def test_runs_of_two_codes_are_not_counted_together(copy):
    def rewrite(path, target, **changes):
        with np.load(path) as file:
            arrays = dict(file)
        about = json.loads(str(arrays["about"])) | changes
        np.savez(target, **arrays | {"about": np.array(json.dumps(about))})

    def of(path):
        run = read_run(path)
        return run.about["key"], run.outcome.latency.tolist()

    folder = copy / "build/smoke/serving/finetuned"
    one, other = folder / "saturation-0-0.npz", folder / "open-loop-0.5-0.npz"
    before = of(other)
    rewrite(one, one, key="another code's")
    rewrite(other, folder / "open-loop-9-0.npz", key="another budget's", share=9.0)
    collate = (PYTHON, "scripts/collate_serving.py", "--profile", "smoke")
    refused = run(copy, *collate)
    assert refused.returncode == 1
    assert "finetuned: runs of two codes or budgets; run: make serve-bench PROFILE=smoke" in refused.stderr
    again = (PYTHON, "scripts/07_serve_bench.py", "--profile", "smoke", "--only", "finetuned")
    assert run(copy, *again).returncode == 0
    assert not (folder / "open-loop-9-0.npz").exists()
    assert of(one)[0] == before[0]
    assert of(other) == before or is_void(read_run(other).outcome)
    assert run(copy, *collate).returncode == 0
    origins = json.loads((copy / "results/smoke/serving.json").read_text())
    assert sum(origin["runs"] for origin in origins) == len(list(folder.parent.glob("*/*.npz")))


def test_the_stored_logits_are_those_of_the_ordinary_loader(smoke):
    folder, _ = smoke
    from datasets import load_from_disk
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model_folder = folder / "build/smoke/models/finetuned"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    texts = load_from_disk(str(folder / "build/smoke/data/splits"))["test"]["text"][:20]
    with torch.inference_mode():
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        expected = model(**batch).logits.numpy()
    np.testing.assert_allclose(logits(folder, "finetuned")[:20], expected, atol=1e-5)


def test_a_second_run_does_nothing_quickly(smoke):
    folder, _ = smoke
    before = (folder / "build/smoke/records/finetuned.json").stat().st_mtime_ns
    compiled = folder / "scripts/compress/serving/__pycache__"
    compiled.mkdir(exist_ok=True)
    os.utime(compiled)  # as when `make serve` is the first to import a module
    started = time.perf_counter()
    done = run(folder, "make", "all", "PROFILE=smoke")
    assert done.returncode == 0
    assert time.perf_counter() - started < 5
    assert "scripts/" not in done.stdout
    assert (folder / "build/smoke/records/finetuned.json").stat().st_mtime_ns == before


@pytest.mark.slow  # trainings side by side, in the next test, are killed and go on, too
def test_training_killed_between_checkpoints_goes_on_and_ends_in_the_same_logits(copy):
    expected = logits(copy, "finetuned")
    shutil.rmtree(copy / "build/smoke/models")
    shutil.rmtree(copy / "build/smoke/records")
    command = (*FINETUNE, "--only", "finetuned")
    process = subprocess.Popen(
        command, cwd=copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    checkpoints = copy / "build/smoke/checkpoints"
    deadline = time.time() + 120
    while not list(checkpoints.glob("*/checkpoint-*/trainer_state.json")):
        assert time.time() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (copy / "build/smoke/models/finetuned").exists()
    done = run(copy, *command)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(logits(copy, "finetuned"), expected)
    assert not list(checkpoints.iterdir())


def test_trainings_side_by_side_end_with_their_stage_and_go_on_to_the_same_logits(copy):
    names = ("distill-1x32", "distill-tiny", "distill-labels")
    stage = (PYTHON, "scripts/04_distill.py", "--profile", "smoke", "--only", *names)
    expected = {name: logits(copy, name) for name in names}
    for name in names:
        shutil.rmtree(copy / "build/smoke/models" / name)
        (copy / "build/smoke/records" / f"{name}.json").unlink()
    process = subprocess.Popen(stage, cwd=copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = copy / "build/smoke/checkpoints"
    deadline = time.time() + 120
    while len(list(checkpoints.iterdir())) < min(2, cores()):
        assert time.time() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()  # it alone: whatever trains for it must see that
    process.wait()
    while left := [pid for pid in os.listdir("/proc") if pid.isdigit() and works_in(pid, copy)]:
        assert time.time() < deadline, f"processes {left} train on"
        time.sleep(0.1)
    assert not any((copy / "build/smoke/models" / name).exists() for name in names)
    done = run(copy, *stage)
    assert done.returncode == 0, done.stderr[-2000:]
    assert cores() == 1 or "3 variants" in done.stdout
    for name in names:
        np.testing.assert_array_equal(logits(copy, name), expected[name])
    assert not list(checkpoints.iterdir())


def works_in(pid, folder) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd") == str(folder)
    return False


def test_what_fails_beside_others_is_told_and_keeps_none_of_them(copy):
    names = ("distill-1x32", "distill-labels")
    for name in names:
        shutil.rmtree(copy / "build/smoke/models" / name)
    profile = copy / "scripts/profiles/smoke.toml"
    profile.write_text(profile.read_text().replace("student = { layers = [0] }", "student = { layers = [9] }", 1))
    done = run(copy, PYTHON, "scripts/04_distill.py", "--profile", "smoke", "--only", *names)
    assert done.returncode == 1
    assert "distill-1x32: FAILED: student: layers: 9 asked for" in done.stderr
    assert (copy / "build/smoke/models/distill-labels/artifact.json").exists()
    if cores() > 1:
        assert "distill-1x32: left for later: student: layers: 9 asked for" in done.stderr + done.stdout


def damage(record, how):
    if how == "truncated":
        record.write_text(record.read_text()[:200])
    elif how == "edited":
        record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    else:
        record.unlink()


@pytest.mark.parametrize(("how", "says"), [("truncated", "corrupt"), ("edited", "altered"), ("gone", "no such record")])
def test_a_damaged_record_is_named_and_refused_and_then_made_anew(copy, how, says):
    record = copy / "build/smoke/records/finetuned.json"
    damage(record, how)
    done = run(copy, *COLLATE)
    assert done.returncode == 1
    assert "finetuned.json" in done.stderr
    assert says in done.stderr
    if how == "truncated":
        assert run(copy, *FINETUNE).returncode == 0
        assert run(copy, *COLLATE).returncode == 0


def test_make_repairs_what_is_gone_or_damaged(copy):
    def make(*goals):
        return run(copy, "make", *goals, "PROFILE=smoke")

    build, record = copy / "build/smoke", copy / "build/smoke/records/bert-orig.json"
    record.write_text(record.read_text()[:200])
    assert "Nothing to be done" in make("finetune").stdout
    assert "bert-orig.json: corrupt" in make("results").stderr
    shutil.rmtree(build / "data/splits")
    assert "splits: damaged" in make("finetune").stderr
    shutil.rmtree(build / "data")  # as one is told to
    done = make("finetune")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "bert-orig: done" in done.stdout
    assert "finetuned: up to date" in done.stdout
    for folder in ("results", "figures", "report"):
        shutil.rmtree(copy / folder / "smoke")
    assert make("report").returncode == 2
    assert make("results").returncode == 0
    assert table(copy)["bert-orig"]["status"] == "ok"
    assert make("report").returncode == 0
    assert (copy / "report/smoke/report.md").exists()
    assert (copy / "figures/smoke/f1_vs_size.png").exists()


def test_a_damaged_parent_is_not_learned_from(copy):
    models = copy / "build/smoke/models"
    shutil.copy(models / "distill-1x32/model.safetensors", models / "distill-tiny/model.safetensors")
    shutil.rmtree(models / "ov-default")
    done = run(copy, PYTHON, "scripts/05_export.py", "--profile", "smoke", "--only", "ov-default")
    assert done.returncode == 1
    assert "distill-tiny/model.safetensors: damaged or replaced" in done.stderr


def test_answers_that_are_no_numbers_are_a_failure(copy):
    folder = copy / "build/smoke/models/cut-1x32"
    weights, about = folder / "model.safetensors", json.loads((folder / "artifact.json").read_text())
    tensors = load_file(weights)
    tensors["classifier.bias"][0] = np.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    about["files"][weights.name]["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "artifact.json").write_text(json.dumps(about))
    (copy / "build/smoke/records/cut-1x32.json").unlink()
    done = run(copy, PYTHON, "scripts/04_distill.py", "--profile", "smoke", "--only", "cut-1x32")
    assert done.returncode == 1
    assert "its answers are not numbers" in done.stderr
    model = torch.nn.Linear(2, 2)
    model.bias.data[0] = torch.inf
    with pytest.raises(UserError, match="not finite: bias"):
        made(model, None)


def test_what_was_timed_on_a_busy_machine_is_measured_again(copy):
    build = copy / "build/smoke"
    command = (PYTHON, "scripts/04_distill.py", "--profile", "smoke", "--only", "distill-tiny")
    predictions, path = build / "predictions/distill-tiny.npz", build / "records/distill-tiny.json"
    with np.load(predictions) as file:
        arrays = dict(file)
    np.savez(predictions, **arrays | {"throughput_seconds": 100 * arrays["throughput_seconds"]})
    record = json.loads(path.read_text())["record"]
    record["measured"]["predictions_sha256"] = sha256_file(predictions)
    path.write_text(json.dumps({"record": record, "sha256": digest(record)}))
    assert "distill-tiny: done" in run(copy, *command).stdout
    with np.load(predictions) as file:
        assert file["throughput_seconds"].sum() < 50 * arrays["throughput_seconds"].sum()
        assert file["answer_seconds"] == arrays["answer_seconds"]  # its answers were good, and were not asked again


@pytest.mark.parametrize("pending", ["whole", "damaged"])
def test_answers_that_wait_for_their_record_are_used_if_they_are_whole(copy, pending):
    build = copy / "build/smoke"
    recorded, waiting = build / "predictions/cut-1x32.npz", build / "answers/cut-1x32.npz"
    with np.load(recorded) as file:
        arrays = dict(file)
    waiting.parent.mkdir(exist_ok=True)
    shutil.move(recorded, waiting)  # as if the run had been killed before the record was written
    (build / "records/cut-1x32.json").unlink()
    if pending == "damaged":
        waiting.write_bytes(waiting.read_bytes()[:-100])
    done = run(copy, PYTHON, "scripts/04_distill.py", "--profile", "smoke", "--only", "cut-1x32")
    assert "cut-1x32: done" in done.stdout
    assert not list((build / "answers").iterdir())
    with np.load(recorded) as file:
        np.testing.assert_array_equal(file["logits/test"], arrays["logits/test"])
        assert (file["answer_seconds"] == arrays["answer_seconds"]) == (pending == "whole")


def test_times_beside_a_slow_baseline_are_not_used():
    row = {"seed": 0.0, "latency_ms_p95": 9.0, "throughput_speedup": 2.0, "reason": ""}
    rows = [
        row | {"variant": str(i), "latency_ms_p50": 5.0, "latency_speedup": 2.0, "throughput_per_s": 100.0}
        for i in range(5)
    ]
    rows[1] |= {"latency_ms_p50": 3.0, "latency_speedup": 4.0}  # of a quicker variant, beside a like baseline
    rows[2]["latency_ms_p50"] = 17.0
    rows[3]["throughput_per_s"] = 60.0
    rows.append(row | dict.fromkeys(TIMES) | {"variant": "untimed"})
    kept = without_disturbed_times(rows, "4")
    assert [row["latency_ms_p50"] for row in kept] == [5.0, 3.0, None, None, 5.0, None]
    assert kept[2]["throughput_per_s"] is None
    assert kept[2]["reason"].endswith("the baseline beside it took 3.4 times its usual time")
    assert rows[2]["latency_ms_p50"] == 17.0
    assert without_disturbed_times(rows, "2")[2] == rows[2]


def test_swapped_predictions_are_refused(copy):
    predictions = copy / "build/smoke/predictions"
    shutil.copy(predictions / "bert-orig.npz", predictions / "finetuned.npz")
    done = run(copy, *COLLATE)
    assert done.returncode == 1
    assert "finetuned.npz" in done.stderr


def test_a_second_seed_may_be_there_in_part_but_not_the_first(copy):
    assert run(copy, *FINETUNE, "--seed", "1", "--only", "finetuned").returncode == 0
    done = run(copy, *COLLATE, "--seeds", "0 1")
    assert done.returncode == 0, done.stderr[-2000:]
    variants = load_profile("smoke").variants
    assert f"seed 1: 1 of {len(variants)} variants" in done.stdout
    assert run(copy, PYTHON, "scripts/render.py", "--profile", "smoke").returncode == 0
    with open(copy / "results/smoke/seeds.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    with open(copy / "results/smoke/variants.csv", newline="") as file:
        f1 = [float(row["f1_test"]) for row in csv.DictReader(file) if row["variant"] == "finetuned"]
    assert float(row["f1_mean"]) == pytest.approx(sum(f1) / 2, abs=1e-6)
    seeds = (copy / "report/smoke/report.md").read_text().partition("### Training seeds")[2].partition("##")[0]
    assert "| finetuned | 2 |" in seeds
    assert "bert-orig" not in seeds
    second_first = run(copy, *COLLATE, "--seeds", "1 2")
    assert second_first.returncode == 1
    assert "bert-orig-seed1.json" in second_first.stderr


def test_a_failed_variant_is_recorded_told_and_never_reused(copy):
    (copy / "build/smoke/data/backbone/model.safetensors").write_bytes(b"not weights")
    shutil.rmtree(copy / "build/smoke/models/bert-orig")
    done = run(copy, *FINETUNE)
    assert done.returncode == 1
    assert "finetuned: up to date" in done.stdout
    record = json.loads((copy / "build/smoke/records/bert-orig.json").read_text())["record"]
    assert record["status"] == "failed"
    assert record["reason"]
    collated = run(copy, *COLLATE)
    assert collated.returncode == 1
    assert table(copy)["bert-orig"]["f1_test"] == ""
    assert "up to date" not in run(copy, *FINETUNE, "--only", "bert-orig").stdout.replace("finetuned: up to date", "")


def test_errors_a_user_meets(smoke):
    folder, _ = smoke
    assert "unknown profile" in run(folder, PYTHON, "scripts/01_finetune.py", "--profile", "x").stderr
    assert "unknown PROFILE 'x': choose one of bert-base " in run(folder, "make", "all", "PROFILE=x").stderr
    assert "no nopython: install Python" in run(folder, "make", "all", "PYTHON=nopython").stderr
    assert "must be at least 1" in run(folder, *FINETUNE, "--threads", "0").stderr
    assert "no variant 'x'" in run(folder, *FINETUNE, "--only", "x").stderr

    if not torch.cuda.is_available():
        assert "no CUDA GPU" in run(folder, *FINETUNE, "--device", "cuda").stderr
    bare = run(folder, PYTHON, "scripts/recommend.py", "--profile", "smoke", PYTHONPATH="")
    assert bare.returncode == 0, bare.stderr


def test_the_report_without_results_says_what_to_run(copy):
    shutil.rmtree(copy / "results/smoke")
    done = run(copy, "make", "report", "PROFILE=smoke")
    assert done.returncode == 2
    assert "make results PROFILE=smoke" in done.stderr


@pytest.mark.parametrize(
    "variant", ["finetuned", "bf16", "int8-dynamic", pytest.param("compiled-fp32", marks=pytest.mark.slow)]
)
def test_a_fork_answers_as_a_fresh_process_does(smoke, tmp_path, variant):
    folder = smoke[0] / "build/smoke/models" / variant
    texts = {"test": ["a fine film", "", "of all the bores of this year the longest"] * 20, "validation": ["so so"]}
    job = measure.Questions(str(folder), "cpu", 2, texts)
    fresh, fork = measure.measure(job), forked.measure(job)
    logits = [name for name in fresh if name.startswith("logits")]
    assert len(logits) == 3
    for name in logits:
        np.testing.assert_array_equal(fork[name], fresh[name])
    missing = dataclasses.replace(job, variant=str(tmp_path / "nothing"))
    for module in (measure, forked):
        with pytest.raises(UserError, match=r"measuring .*nothing failed: .*artifact\.json"):
            module.measure(missing)


def test_the_baseline_against_itself_takes_the_same_time(smoke):
    row = table(smoke[0])["finetuned"]
    assert float(row["f1_drop_points"]) == 0
    assert float(row["size_ratio"]) == 1
    assert 0.9 < float(row["latency_speedup"]) < 1.1  # the tolerance of a busy machine; the report's rows are closer
