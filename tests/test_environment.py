"""Machines and environments that are set up in other ways: it works, or one message says what is wrong."""

import time

import pytest
import torch
from compress.data.prepare import prepare
from compress.data.tasks import splits_for
from compress.graph.building import Job, save_build
from compress.measure import evaluation
from compress.methods.baseline import untrained
from compress.methods.hf_optimum import torch_runtime
from compress.storage.record import read_record
from test_encoders import encoder, own_profile

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
    prepare(profile)
    for variant, maker in zip(profile.variants, (untrained, torch_runtime), strict=True):
        job = Job(profile, variant, 0, "cpu", "cpu", *splits_for(profile, variant))
        save_build(job, maker(variant, job.context), time.perf_counter())
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
    assert not evaluation.needs_evaluation(folder, [])
