"""Times are taken while the cores are near each other, and what hangs on times is all that a new protocol measures."""

import shutil

import pytest
from compress import files
from compress.measure import protocol as measure

NEAR, FAR = 1.0, 2.5
PATIENCE = 5.0


class Scripted(measure.Cores):
    """Handovers take what is written; the last of them from then on."""

    def __init__(self, *seconds, known=NEAR):
        super().__init__(2, PATIENCE, handover=known)
        self.script = list(seconds)

    def handover(self):
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(measure.time, "sleep", found.append)
    return found


def test_times_are_taken_again_until_the_cores_were_near_each_other_before_and_after(pauses):
    cores = Scripted(FAR, FAR, NEAR, FAR, NEAR, NEAR)
    assert len(list(cores.together())) == 2  # two pauses, then it counts from near to near only
    assert pauses == [measure.PAUSE] * 2
    assert cores.handovers == [NEAR]
    assert 0 < cores.patience < PATIENCE


def test_patience_ends_and_what_was_timed_apart_is_told(pauses):
    cores = Scripted(FAR)
    for _ in range(3):
        assert len(list(cores.together())) == 1
    assert sum(pauses) == pytest.approx(PATIENCE, abs=measure.PAUSE)  # once, not for each
    assert cores.handovers == [FAR] * 3


def test_a_thread_alone_waits_for_no_other(pauses):
    cores = measure.Cores(1, PATIENCE)
    assert len(list(cores.together())) == 1
    assert (pauses, cores.handovers) == ([], [])


def test_a_handover_takes_time_and_is_found_where_no_baseline_tells_it(pauses):
    cores = measure.Cores(2, PATIENCE)
    assert sum(pauses) == pytest.approx(PATIENCE / 2)
    assert 0 < cores.near < 1e-3


def test_what_near_cores_take_hangs_on_no_outlier(pauses, monkeypatch):
    found = iter([NEAR / 4, *[FAR] * 20, *[NEAR] * 4])
    monkeypatch.setattr(measure.Cores, "handover", lambda _: next(found))
    assert measure.Cores(2, PATIENCE).near == NEAR


def test_what_was_looked_for_among_far_cores_is_learned_from_the_first_near_ones(pauses):
    cores = Scripted(FAR, FAR, NEAR, NEAR, FAR, NEAR, known=FAR)
    assert len(list(cores.together())) == 1  # nothing tells them from near ones yet
    assert len(list(cores.together())) == 1
    assert len(list(cores.together())) == 1  # from a far to a near one, after a pause
    assert (cores.near, pauses, cores.handovers) == (NEAR, [measure.PAUSE], [FAR, NEAR, NEAR])


def test_a_change_of_the_timing_leaves_answers_as_they_are(tmp_path, monkeypatch):
    scripts = shutil.copytree(files.SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(files, "SCRIPTS", scripts)
    path = scripts / "compress/measure.py"
    source = path.read_text()

    def changed(old, new):
        assert source.count(old) == 1
        path.write_text(source.replace(old, new))
        now = hashes()
        path.write_text(source)
        return [a != b for a, b in zip(now, unchanged, strict=True)]

    def hashes():
        return [files.source_hash(path, function.__name__) for function in (measure.timings, measure.answers)]

    unchanged = hashes()
    assert changed("BLOCK = 20", "BLOCK = 21") == [True, False]
    assert changed("    latency_calls: int\n", "    latency_calls: float\n") == [True, False]
    assert changed("INVARIANCE_BATCH = 16", "INVARIANCE_BATCH = 8") == [True, True]
    assert changed("INVARIANCE_TOLERANCE = 1e-4", "INVARIANCE_TOLERANCE = 1e-3") == [True, True]  # some answer there
    assert changed("    variant = load(", "    variant = 2 * load(") == [True, True]
