"""The long load of make soak: its requests, its samples on a real service, and what counts as growth."""

from dataclasses import replace

import orjson
import pytest
from compress.loadtest import soaking
from compress.loadtest.soaking import Sample, growth, random_requests, soak

FLAT = [Sample(100 + i % 3, 20 + i % 2, 10 + i % 4, 0.99) for i in range(20)]


def changed(values: dict[int, float], field: str) -> list[Sample]:
    return [replace(of, **{field: values.get(i, getattr(of, field))}) for i, of in enumerate(FLAT)]


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (FLAT, ""),
        (changed({i: 40 + 10 * i for i in range(7)}, "memory_mb"), ""),  # a cache that fills, then a plateau
        (changed({i: 100 + i for i in range(20)}, "memory_mb"), "memory grows from 109.0 to 119.0 MB"),
        (changed({i: 20 + i for i in range(20)}, "descriptors"), "open files grow from 29 to 39"),
        (changed({i: 10 + 10 * i for i in range(20)}, "p99_ms"), "the median p99 grows from 65.0 to 155.0 ms"),
        (changed({19: 900}, "p99_ms"), ""),  # one outlier
        (changed(dict.fromkeys(range(20), 0.9), "completed"), "only 90.0 % of the requests were completed"),
    ],
)
def test_what_grows_between_the_halves_is_named(samples, found):
    assert growth(samples) == ([found] if found else [])


def test_a_soak_sends_texts_of_every_length_in_every_number_and_samples_the_service(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(soaking, "CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(soaking, "SATURATION_SECONDS", 0.5)
    monkeypatch.setattr(soaking, "SAMPLES", 5)
    lines = []
    samples = soak([artifact], 0.02, 1, tmp_path / "log", lines.append)
    assert len(samples) == len(lines) == 5
    assert all(of.memory_mb > 30 and of.descriptors > 5 and of.p99_ms > 0 for of in samples)
    assert sum(of.completed for of in samples) / len(samples) > 0.5
    info = {"models": [{"max_length": 64, "max_batch": 4}, {"max_length": 128, "max_batch": 1}]}
    groups = [orjson.loads(request.split(b"\r\n\r\n")[1])["text"] for request in random_requests(info)]
    shapes = {(len(texts), len(texts[0].split())) for texts in groups}
    assert shapes == {(count, length) for count in range(1, 5) for length in range(1, 64)}
    assert all(len({len(text.split()) for text in texts}) == 1 for texts in groups)
