"""Machines and environments that are set up in other ways: it works, or one message says what is wrong."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compress.cli import main_guard, thread_count
from compress.config.profile import load_profile
from compress.config.variants import TorchRuntime
from compress.cpu import cores, cpu_quota, warn_of_saturation
from compress.data import hub
from compress.data.prepare import prepare
from compress.data.tasks import splits_for
from compress.errors import Skip, UserError
from compress.graph.building import Job, known_before, save_build
from compress.measure import coldstart, evaluation
from compress.methods import hf_optimum
from compress.methods.baseline import untrained
from compress.methods.hf_optimum import torch_runtime
from compress.metrics import quality
from compress.report.comparisons import recommendable
from compress.report.recommendation import best
from compress.results.reading import read_results
from compress.serving.limits import Options
from compress.serving.server import fitted
from compress.storage.record import read_record
from conftest import ROOT, copy_repository, run
from packaging.specifiers import SpecifierSet
from test_encoders import encoder, own_profile
from test_service import get, service

PROFILE = """
name = "own"
description = "-"
baseline = "bert-orig"
data = { path = "a.csv", validation = 10, test = 10, max_length = 16 }
backbone = { path = "mein encoder" }
variants.bert-orig = { method = "untrained" }
"""
OPTIONS = {"name": "compiled", "method": "torch", "precision": "bf16", "compile": True, "parent": "bert-orig"}
ERRORS = {
    "OSError: /t/x.so: failed to map segment from shared object.  The most common reason is": "failed to map segment",
    "C++ compile error\n\nOutput:\na.cpp:1: fatal error: writing a.s: No space left on device": "writing a.s: No space",
    "": "TorchDynamoException",
}


@pytest.mark.parametrize(("error", "reason"), ERRORS.items())
def test_a_compiler_that_fails_skips_the_variant_and_names_the_temporary_folder(tmp_path, monkeypatch, error, reason):
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "-")  # evaluate_variant sets it
    monkeypatch.setenv("TMPDIR", "/t")
    encoder(tmp_path / "encoder")
    profile = own_profile(tmp_path, OPTIONS, path=str(tmp_path / "encoder"))
    prepare(profile, [0])
    for variant, maker in zip(profile.variants, (untrained, torch_runtime), strict=True):
        job = Job(profile, variant, 0, "cpu", "cpu", *splits_for(profile, variant, 0))
        save_build(job, maker(variant, job.context), time.perf_counter(), known_before(job))
    monkeypatch.setattr(evaluation, "load_profile", lambda _: profile)

    def fail(**_):
        raise torch._dynamo.exc.TorchDynamoException(error)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    assert evaluation.evaluate_variant("own", "bert-orig", 0, "cpu").startswith("evaluated")
    message = evaluation.evaluate_variant("own", "compiled", 0, "cpu")
    assert message.startswith("skipped: torch.compile failed: ")
    assert reason in message
    assert message.endswith("(TMPDIR=/t)")
    folder = profile.variant_folder("compiled")
    record = read_record(folder)
    assert (record.status, f"skipped: {record.reason}") == ("skipped", message)
    assert [file.name for file in folder.iterdir()] == ["record.json"]
    assert not evaluation.is_built(folder)


def test_a_path_with_a_space_skips_what_torch_compile_can_not_do(monkeypatch):
    monkeypatch.setattr(hf_optimum, "ROOT", Path("/my clone"))
    with pytest.raises(Skip, match="compile needs paths without spaces"):
        torch_runtime(TorchRuntime.model_validate(OPTIONS), None)


def test_a_cold_start_compiles_next_to_the_model(tmp_path, monkeypatch):
    seen = {}
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(coldstart.subprocess, "run", lambda *_, env, **__: seen.update(env) or done)
    coldstart.measure_cold(tmp_path, [], "cpu", 1, tmp_path / "cold.npz")
    assert Path(seen["TORCHINDUCTOR_CACHE_DIR"]).parent == tmp_path


# Files below /sys/fs/cgroup, the process's line in /proc/self/cgroup, and the CPUs that they grant.
QUOTAS = {
    "version 2 in a container": ({"cpu.max": "150000 100000"}, "0::/", 1.5),
    "version 2, a slice": ({"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 0.5),
    "version 2 without a quota": ({"a/cpu.max": "max 100000"}, "0::/a", np.inf),
    "version 1": ({"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpuacct,cpu:/a", 4),
    "version 1, the host's path": (
        {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
        "4:cpuset:/\n3:cpu:/docker/0a",
        2,
    ),
    "version 1 without a quota": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/", np.inf),
    "no cgroups": ({}, "", np.inf),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_quota_of_a_container_limits_the_cores(tmp_path, monkeypatch, case):
    files, group, granted = QUOTAS[case]
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()} | {"proc/self/cgroup": group}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == granted
    monkeypatch.setattr("compress.cpu.cpu_quota", lambda: granted)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3))
    assert cores() == {0.5: 1, 1.5: 1, 2: 2}.get(granted, 3)


def test_the_service_has_a_worker_per_core_and_never_more_threads_than_cores(artifact):
    python = ("taskset", "-c", "0", sys.executable)
    with service(ROOT, artifact, python=python, threads=2) as (port, process):
        limits = get(port, "/info")[1]["limits"]
        assert (limits["workers"], limits["threads"]) == (1, 1)
        process.terminate()
        warning = (
            "warning: --workers 1 with --threads 2 are more threads than cores (1), which would delay every request"
        )
        assert f"{warning}: using 1 with 1" in process.stdout.read()


@pytest.mark.parametrize(
    ("workers", "threads", "used"), [(4, 1, (2, 1)), (2, 2, (1, 2)), (1, 1, (1, 1)), (1, 3, (1, 2))]
)
def test_workers_and_threads_together_are_no_more_than_the_cores(monkeypatch, capsys, workers, threads, used):
    monkeypatch.setattr("compress.serving.server.cores", lambda: 2)
    options = fitted(Options(workers=workers, threads=threads))
    assert (options.workers, options.threads) == used
    assert bool(capsys.readouterr().err) == (used != (workers, threads))


@pytest.mark.parametrize(("given", "used"), [("1", 1), ("2", 2), ("99", 2)])
def test_no_command_takes_more_threads_than_cores(monkeypatch, capsys, given, used):
    monkeypatch.setattr("compress.cli.cores", lambda: 2)
    assert thread_count(given) == used
    assert bool(capsys.readouterr().err) == (given == "99")


AVX2 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f\n"


@pytest.mark.parametrize(
    ("cpuinfo", "backend", "precision", "warned"),
    [
        (AVX2, "onnxruntime", "int8", True),
        (AVX2, "cascade", "int8", True),
        (AVX2, "onnxruntime", "fp32", False),
        (AVX2, "torch", "int8", True),
        (AVX2, "torch-int8-saved", "int8", False),  # torch's own rounding to 7 bits
        (AVX2, "openvino", "int8", True),
        (AVX2, "openvino", "fp32", False),
        (AVX2.replace("avx512f", "avx_vnni"), "onnxruntime", "int8", False),
        (AVX2.replace("avx512f", "avx512_vnni"), "onnxruntime", "int8", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", "onnxruntime", "int8", False),
    ],
)
def test_8_bit_products_that_can_overflow_cause_a_warning(
    tmp_path, monkeypatch, capsys, cpuinfo, backend, precision, warned
):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr("compress.cpu.CPUINFO", tmp_path / "cpuinfo")
    warn_of_saturation("m", backend, precision, {"reduced_range": False})
    assert capsys.readouterr().err.startswith("warning: m: this CPU has no VNNI") == warned
    for exact in ({"reduced_range": True}, {"method": "torchao"}):
        warn_of_saturation("m", backend, precision, exact)
        assert not capsys.readouterr().err


def test_predict_serve_and_recommend_warn_on_a_cpu_without_vnni(tmp_path, artifact):
    (tmp_path / "cpuinfo").write_text(AVX2)
    program = f"""
import runpy, sys
from pathlib import Path
sys.path.insert(0, "scripts")
import compress.cpu
compress.cpu.CPUINFO = Path({str(tmp_path / "cpuinfo")!r})
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    python = (sys.executable, "-c", program)
    int8 = tmp_path / "int8"
    shutil.copytree(artifact, int8)
    about = json.loads((int8 / "artifact.json").read_text())
    about |= {"variant": "int8", "runtime": {"precision": "int8"}}
    (int8 / "artifact.json").write_text(json.dumps(about))
    done = run(ROOT, *python, "scripts/predict.py", "--model", str(int8), "good")
    assert done.stderr.startswith("warning: int8: this CPU")
    with service(ROOT, artifact, int8, python=python) as (_, process):
        process.terminate()
        assert re.findall(r"warning: (\S+): this CPU", process.stdout.read()) == ["int8"]
    results = read_results(load_profile("minilm"))
    rows = recommendable(results)
    best_of = [best(rows, {"max_mb": row.size_mb}) for row in rows]
    row = next(row for row in best_of if (row.backend, row.precision) == ("onnxruntime", "int8"))
    done = run(ROOT, *python, "scripts/recommend.py", f"--max-mb={row.size_mb!r}")
    assert done.stdout.startswith(f"{row.variant}: F1")
    assert done.stderr.startswith(f"warning: {row.variant}: this CPU")


def test_make_has_one_thread_on_one_core(tmp_path):
    (tmp_path / "nproc").write_text("#!/bin/sh\necho 99\n")  # does not know a quota
    (tmp_path / "nproc").chmod(0o755)
    done = run(ROOT, "taskset", "-c", "0", "make", "settings", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert re.search(r"^THREADS +1\nJOBS +1$", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_make_keeps_other_settings_of_python_and_pip_away(tmp_path):
    (tmp_path / "show.mk").write_text("show:\n\t@env\n")
    given = {
        "PYTHONPATH": "/other",
        "PYTHONHOME": "/nonsense",
        "PYTHONOPTIMIZE": "2",
        "PIP_USER": "1",
        "PIP_TARGET": "/other",
    }
    command = ["env", "-u", "HOME", "make", "-f", "Makefile", "-f", tmp_path / "show.mk", "show"]
    done = run(ROOT, *command, **given)
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert not {"PYTHONPATH", "PYTHONHOME", "PYTHONOPTIMIZE", "PIP_TARGET"} & seen.keys()
    assert (seen["PIP_USER"], seen["PYTHONUTF8"], seen["PYTHONNOUSERSITE"]) == ("0", "1", "1")
    assert seen["HOME"] == f"{ROOT}/build"


def test_data_are_made_in_a_path_with_spaces_and_umlauts_without_a_home_or_locale(tmp_path):
    folder = copy_repository(tmp_path / "Mein Klön")
    (encoder(folder / "mein encoder") / "read me.txt").touch()
    (tmp_path / "numpy.py").write_text("raise ImportError('another numpy')")
    own_profile(folder, path="mein encoder")  # writes a.csv
    (folder / "scripts/profiles/own.toml").write_text(PROFILE, "utf-8")
    given = {"LC_ALL": "C", "HOME": "/dev/null", "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonsense"}
    done = run(folder, "make", "data", "PROFILE=own", **given)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "16.67% of the pieces in train are unknown" in done.stdout
    assert json.loads((folder / "build/own/data/seed0/data.json").read_text("utf-8"))["labels"] == ["a", "b"]


def test_a_script_writes_utf8_whatever_the_streams_encoding():
    code = "import argparse, compress.cli as c; c.main_guard(lambda _: print('sch\\xf6n'), argparse.ArgumentParser())"
    done = run(ROOT / "scripts", sys.executable, "-c", code, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stdout) == (0, "schön\n"), done.stderr


def test_programs_that_a_script_starts_read_utf8(monkeypatch, capfd):
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit):
        main_guard(lambda _: subprocess.run(["printenv", "LC_ALL"]).returncode, argparse.ArgumentParser())
    assert capfd.readouterr().out == "C.UTF-8\n"


def test_f1_needs_no_folder_in_the_home_and_none_of_another_user(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", "/dev/null/cache")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "evaluate").touch()
    assert quality(np.eye(2), np.array([0, 1]))["f1"] == 1


def test_a_cache_of_the_hub_that_can_not_be_written_is_named(monkeypatch):
    def fail(*_, **__):
        raise OSError(30, "Read-only file system", "/home/.cache")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(hub.HfApi, "repo_info", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"(?s)model a/b: can't be stored in .*Read-only file system.*Set HF_HOME"):
        hub.download(f"a/b@{'0' * 40}", "model")


def test_every_pinned_library_accepts_the_oldest_python_that_make_accepts():
    bound = re.search(r"\((3, \d+, \d+)\) <= v", (ROOT / "Makefile").read_text("utf-8"))[1].replace(", ", ".")
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    needs = {name: metadata(name).get("Requires-Python") or "" for name in pinned}
    assert {name: need for name, need in needs.items() if bound not in SpecifierSet(need)} == {}
