"""The repository's own promises: the lock and conda agree, README and report say what results/ says."""

import fcntl
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import render
import yaml
from compress.profile import load_profile
from compress.results import read_results

ROOT = Path(__file__).resolve().parents[1]


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.M))


def test_conda_and_venv_install_the_same_closure():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *plain, nested = conda["dependencies"]
    assert nested == {"pip": ["-r requirements.txt"]}
    assert [re.match(r"\w+", item).group() for item in plain] == ["python", "pip"]
    assert all("=" in item for item in plain)
    assert f"CONDA_NAME := {conda['name']}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_the_lock_pins_all_that_is_asked_for():
    asked = (ROOT / "requirements.in").read_text("utf-8")
    locked = pins((ROOT / "requirements.txt").read_text("utf-8"))
    assert pins(asked).items() <= locked.items()
    names = re.findall(r"^([\w.-]+)(?![^\n]*python_version)", asked, re.M)
    assert {name.lower() for name in names} <= set(locked)
    assert not any("+" in version for version in locked.values()), "a local build is no pin others can install"


def test_the_installed_environment_is_the_locked_one():
    from importlib.metadata import version

    for name, pinned in pins((ROOT / "requirements.txt").read_text("utf-8")).items():
        assert version(name).split("+")[0] == pinned, name


def test_readme_and_report_say_what_the_results_say():
    profile = load_profile("minilm")
    text, head = render.markdown(profile, read_results(profile))
    assert (ROOT / "report" / "report.md").read_text("utf-8") == text
    readme = (ROOT / "README.md").read_text("utf-8")
    assert render.put_headline(readme, head) == readme


def test_a_changed_result_would_be_noticed():
    profile = load_profile("minilm")
    results = read_results(profile)
    before = render.markdown(profile, results)
    results.rows[0]["f1_test"] += 0.01
    after = render.markdown(profile, results)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_help_is_quick_and_long_for_every_script():
    for script in sorted((ROOT / "scripts").glob("*.py")):
        if script.name == "with_lock.py":
            continue
        started = time.perf_counter()
        done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
        assert time.perf_counter() - started < 1.5, script.name
        assert "Example:" in done.stdout


def test_a_second_run_is_told_and_stops(tmp_path):
    with open(tmp_path / "lock", "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        command = [sys.executable, ROOT / "scripts" / "with_lock.py", tmp_path / "lock", "echo", "ran"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 75
        assert "another run" in done.stderr
        assert "ran" not in done.stdout
    assert subprocess.run(command, capture_output=True, text=True).stdout == "ran\n"


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_no_library_is_imported_for_a_profile(name):
    code = f"import sys, compress.profile as p; p.load_profile('smoke'); sys.exit({name!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=True)
