"""The service on Ray Serve: it predicts what our own predictor does; missing things are named before Ray starts."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from compress.loadtest.processes import free_port, launched, post_text, wait_until_ready
from conftest import ROOT
from test_peers import TEXTS, expected

PYTHON = ROOT / "build" / "ray" / "bin" / "python"


def refused(model):
    command = [sys.executable, ROOT / "scripts" / "serve_ray.py", "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_missing_model_is_named_before_ray_starts(tmp_path):
    assert f"{tmp_path}: no model there" in refused(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_command_that_installs_it_is_named(artifact):
    assert "make serve-ray" in refused(artifact)


@pytest.mark.ray
def test_ray_serve_predicts_what_our_predictor_does_and_ends_on_sigterm(artifact, tmp_path):
    port = free_port()
    command = [PYTHON, ROOT / "scripts" / "serve_ray.py", "--model", artifact, "--port", port, "--replicas", 1]
    log = tmp_path / "log"
    with launched(list(map(str, command)), log) as server, ThreadPoolExecutor(8) as pool:
        wait_until_ready("ray", server, port, log, 300)
        responses = list(pool.map(lambda text: post_text(port, text), TEXTS))
        server.terminate()
        server.wait(60)
    for response, (label, score) in zip(responses, expected(artifact, TEXTS), strict=True):
        assert response == {"tiny": {"label": label, "score": pytest.approx(score, abs=1e-4)}}
