"""Records of other machines: merged when data, code, libraries and clocks agree; else refused by name."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from compress import provenance
from compress.config import profile as profiles
from compress.config.profile import load_profile, run_name
from compress.errors import UserError
from compress.files import sha256_file, write_json
from compress.merge import merge
from compress.storage.record import Measured, Record, Sizes, read_arrays, read_record, write_record
from conftest import run

PROFILE = load_profile("smoke")
VARIANTS = {variant.name: variant for variant in PROFILE.variants}


def git(folder, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """This machine's build folder, in a repository of its own, with the baseline in it."""
    root = tmp_path / "here"
    (root / "scripts/compress").mkdir(parents=True)
    (root / "scripts/compress/prune.py").write_text("x = 1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    for module in (profiles, provenance):
        monkeypatch.setattr(module, "ROOT", root)
    write_json(root / "build/smoke/data/data.json", {"fingerprint": "f"})
    write_run(root / "build/smoke", "finetuned")
    return root / "build/smoke"


@pytest.fixture
def there(here, tmp_path):
    """Another machine's, that went on from the same baseline."""
    folder = tmp_path / "there"
    shutil.copytree(here, folder)
    write_run(folder, "distill-1x32")
    return folder


def write_run(build, name, seed=0, value=0.0, machine=(), libraries=(), source=(), **changes):
    """A record as this machine would write it, but for what is changed, and its predictions."""
    run_ = run_name(name, seed, "cpu")
    path = build / "predictions" / f"{run_}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, logits=np.full(3, value))
    told = Measured(
        predictions_sha256=sha256_file(path),
        peak_rss_bytes=1,
        load_seconds=1.0,
        threads=2,
        baseline_threads=2,
        precision="fp32",
        batch_invariant=True,
    )
    origin = provenance.provenance(seed, 2, "cpu")
    origin["machine"] |= dict(machine)
    origin["libraries"] |= dict(libraries)
    about = {
        "run": run_,
        "variant": name,
        "chapter": VARIANTS[name].chapter,
        "method": VARIANTS[name].method,
        "parent": VARIANTS[name].parent,
        "backend": "torch",
        "device": "cpu",
        "trained": True,
        "seed": seed,
        "status": "ok",
        "key": "k",
        "measure_key": "m",
        "data_fingerprint": "f",
        "seconds": 1.0,
        "details": {},
        "sizes": Sizes(bytes=1, bytes_with_tokenizer=1, parameters=1, nonzero_parameters=1),
        "measured": told,
        "provenance": origin | dict(source),
    }
    write_record(build / "records" / f"{run_}.json", Record(**about | changes))


def test_what_is_new_is_copied_with_its_arrays_and_what_is_here_is_kept(here, there):
    before = (here / "records/finetuned.json").stat().st_mtime_ns
    assert merge(PROFILE, there, [0], "cpu") == ["distill-1x32"]
    assert read_arrays(PROFILE, read_record(here / "records/distill-1x32.json"))["logits"].tolist() == [0, 0, 0]
    assert (here / "records/finetuned.json").stat().st_mtime_ns == before
    assert merge(PROFILE, there, [0], "cpu") == []


DIFFERENCES = {
    "data": ({"data_fingerprint": "g"}, r"data_fingerprint: g there, f here \(distill-1x32\)"),
    "library": ({"libraries": {"torch": "1.0"}}, r"libraries\.torch: 1\.0 there, \S+ here"),
    "dirty": ({"source": {"dirty": True}}, r"dirty \(uncommitted changes\): True there, False here"),
    "unknown commit": ({"source": {"commit": "0" * 40}}, r"commit: 0{40} there, \w{40} here"),
    "no commit": ({"source": {"commit": None, "dirty": None}}, r"commit: None there"),
    "clock": ({"machine": {"cpu": "fast"}}, r"cpu: fast there, .* where finetuned was measured"),
    "threads": ({"source": {"threads": 3}}, r"threads: 3 there, 2 where finetuned was measured"),
}


@pytest.mark.parametrize(("change", "says"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_what_differs_is_named_and_nothing_is_copied(here, there, change, says):
    write_run(there, "distill-labels")
    write_run(there, "distill-1x32", **change)
    with pytest.raises(UserError, match=says):
        merge(PROFILE, there, [0], "cpu")
    assert [path.name for path in (here / "records").iterdir()] == ["finetuned.json"]
    assert [path.name for path in (here / "predictions").iterdir()] == ["finetuned.npz"]


@pytest.mark.parametrize(
    ("changed", "merges"),
    [("README.md", True), ("scripts/compress/tables.py", True), ("scripts/compress/prune.py", False)],
)
def test_another_commit_merges_if_the_makers_are_the_same(here, there, changed, merges):
    root = here.parents[1]
    first = git(root, "rev-parse", "HEAD")
    (root / changed).write_text("x = 2\n")
    git(root, "add", changed)
    git(root, "commit", "-qm", "second")
    if merges:
        assert merge(PROFILE, there, [0], "cpu") == ["distill-1x32"]
    else:
        with pytest.raises(UserError, match=f"commit: {first} there, .* which are not known to be the same code"):
            merge(PROFILE, there, [0], "cpu")


def test_uncommitted_changes_here_are_refused(here, there):
    (here.parents[1] / "scripts/compress/prune.py").write_text("x = 2\n")
    with pytest.raises(UserError, match=r"dirty .*: False there, True here"):
        merge(PROFILE, there, [0], "cpu")


def test_rows_of_one_seed_share_one_baseline(here, there):
    write_run(there, "finetuned", value=1.0)
    with pytest.raises(UserError, match=r"finetuned: predictions: \w+ there, \w+ here; .*copy its files in models/"):
        merge(PROFILE, there, [0], "cpu")
    (there / "records/finetuned.json").unlink()
    with pytest.raises(UserError, match="finetuned: no record there"):
        merge(PROFILE, there, [0], "cpu")


def test_another_model_of_the_same_name_is_refused_but_a_failed_one_replaced(here, there):
    write_run(here, "distill-1x32", value=1.0)
    with pytest.raises(UserError, match="distill-1x32: predictions"):
        merge(PROFILE, there, [0], "cpu")
    write_run(here, "distill-1x32", status="failed", reason="no disk", key=None, measured=None, sizes=None)
    assert merge(PROFILE, there, [0], "cpu") == ["distill-1x32"]
    write_run(there, "distill-1x32", status="failed", reason="no disk", key=None, measured=None, sizes=None)
    assert merge(PROFILE, there, [0], "cpu") == []


def test_a_seed_that_is_not_timed_may_come_from_any_machine(here, there):
    for name in ("finetuned", "distill-1x32"):
        write_run(there, name, seed=1, machine={"cpu": "fast", "cores": 64})
    assert merge(PROFILE, there, [1], "cpu") == ["finetuned-seed1", "distill-1x32-seed1"]


def test_damaged_files_and_an_empty_folder_are_named(here, there, tmp_path):
    record = there / "records/distill-1x32.json"
    text = record.read_text()
    record.write_text(text.replace('"details": {}', '"details": {"x": 1}'))
    with pytest.raises(UserError, match=r"there/records/distill-1x32\.json: the record was altered"):
        merge(PROFILE, there, [0], "cpu")
    record.write_text(text)
    np.savez(there / "predictions/distill-1x32.npz", logits=np.ones(3))
    with pytest.raises(UserError, match=r"there/predictions/distill-1x32\.npz: missing, or not the file"):
        merge(PROFILE, there, [0], "cpu")
    with pytest.raises(UserError, match="no records of profile smoke, seeds 2, device cpu there"):
        merge(PROFILE, tmp_path, [2], "cpu")


def test_a_sweep_put_together_gives_the_table_of_one_machine(smoke, tmp_path):
    """Half of the records go to another folder; the merge brings them back."""
    clone, other = tmp_path / "clone", tmp_path / "other"
    shutil.copytree(smoke[0], clone, symlinks=True)
    for path in (clone / "build/smoke/records").iterdir():
        record = read_record(path)
        source = record.provenance.model_copy(update={"commit": "c"})
        write_record(path, record.model_copy(update={"provenance": source}))
    shutil.copytree(clone / "build/smoke/records", other / "records")
    shutil.copytree(clone / "build/smoke/predictions", other / "predictions")
    moved = [variant.name for variant in PROFILE.variants if variant.chapter == "HW3"]
    assert moved
    for name in moved:
        (clone / f"build/smoke/records/{name}.json").unlink()
        (clone / f"build/smoke/predictions/{name}.npz").unlink()
    collate = (".venv/bin/python", "scripts/collate.py", "--profile", "smoke")
    assert run(clone, *collate).returncode == 1
    done = run(clone, *collate, "--merge", str(other), SOURCE_COMMIT="c")
    assert done.returncode == 0, done.stderr
    assert f"{len(moved)} records merged" in done.stdout
    tables = [(folder / "results/smoke/variants.csv").read_text() for folder in (clone, smoke[0])]
    assert tables[0] == tables[1]
    assert json.loads((clone / "results/smoke/environment.json").read_text())["commit"] == ["c"]
