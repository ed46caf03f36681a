"""docs/architecture.md's examples, applied to a finished smoke run: a method, an engine, a data set and a figure."""

import csv
import json
import os
import re
import shutil
import textwrap

import numpy as np
import pytest
from compress.config.profile import load_profile
from compress.engines.predictor import load
from compress.engines.pytorch import load_model
from compress.methods.networks import encoder_matrices
from conftest import ROOT, run

PYTHON = ".venv/bin/python"
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"```(python|toml)\n# (scripts/\S+)\n(.*?)```|```diff\n(.*?)```", re.DOTALL)


def apply_diff(folder, text):
    """Applies hunks without line numbers: each one's lines that are not new must occur exactly once in the file."""
    for part in re.split(r"^--- ", text, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        for hunk in hunks.removesuffix("\n").split("\n@@\n"):
            lines = hunk.split("\n")
            assert {line[:1] for line in lines} <= {" ", "+", "-", ""}, hunk
            before, after = ("\n".join(line[1:] for line in lines if line[:1] != sign) + "\n" for sign in "+-")
            content = (folder / name).read_text("utf-8")
            assert content.count("\n" + before) == 1, f"{name} has no unique place for:\n{hunk}"
            (folder / name).write_text(content.replace("\n" + before, "\n" + after), "utf-8")


@pytest.fixture(scope="module")
def extended(smoke, tmp_path_factory):
    """A copy of the finished smoke run to which every example of the page has been applied."""
    folder = tmp_path_factory.mktemp("extended") / "clone"
    shutil.copytree(smoke[0], folder, symlinks=True)
    engines = folder / "scripts/compress/engines/predictor.py"
    date = engines.stat()
    for _, path, content, diff in BLOCK.findall(PAGE.read_text("utf-8")):
        if diff:
            apply_diff(folder, diff)
        else:
            assert not (folder / path).exists(), path
            (folder / path).write_text(content, "utf-8")
    os.utime(engines, ns=(date.st_atime_ns, date.st_mtime_ns))  # a new engine makes all predictions stale
    return folder


def in_clone(folder, program):
    """The output of a Python program that imports the clone's library."""
    done = run(folder, PYTHON, "-c", textwrap.dedent(program), PYTHONPATH="scripts")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_example_of_a_method_builds_its_variant(extended):
    planned = run(extended, "make", "-n", "all", "PROFILE=smoke").stdout
    built = re.findall(r"scripts/(\S+) .* --number '\[\d+/\d+\]' (\S+)", planned)
    assert set(built) == {("02_quantize_prune.py", "ternary")}
    done = run(extended, "make", "model", "NAME=ternary", "PROFILE=smoke")
    assert "ternary: built in" in done.stdout, done.stdout + done.stderr
    assert "ternary: evaluated in" in done.stdout
    folder = extended / "build/smoke/seed0"
    record = json.loads((folder / "ternary/record.json").read_text("utf-8"))["record"]
    assert (record["status"], record["chapter"], record["options"]["threshold"]) == ("ok", "HW1", 0.5)
    for name, weight in encoder_matrices(load_model(folder / "ternary")).items():
        values = weight.unique().tolist()
        assert len(values) == 3, name
        assert values[0] == -values[2]
        assert values[1] == 0
    rng = np.random.default_rng(0)
    logits = load(folder / "ternary")(rng.integers(1000, 2000, (2, 9)), np.ones((2, 9), np.int64))
    assert np.isfinite(logits).all()


def test_the_example_of_an_engine_computes_the_mean_of_vectors(extended):
    output = in_clone(
        extended,
        """
        import sys
        from pathlib import Path
        import numpy as np
        from compress.engines.predictor import load, predict
        from compress.storage.artifact import save_artifact

        rng = np.random.default_rng(0)
        arrays = {name: rng.normal(size=shape).astype(np.float32)
                  for name, shape in {"vectors": (50, 8), "weight": (2, 8), "bias": 2}.items()}
        save_artifact(
            Path("bag"), lambda folder: np.savez(folder / "bag.npz", **arrays), Path("build/smoke/data/backbone"),
            variant="bag", method="bag", parent=None, backend="bag", parameters=1, nonzero_parameters=1,
            labels=["a", "b"], max_length=32, options={}, train_seconds=None, details={}, runtime={},
        )
        ids = [[3, 1, 4], [1, 5, 9, 2, 6]]
        expected = [arrays["vectors"][row].mean(0) @ arrays["weight"].T + arrays["bias"] for row in ids]
        model = load(Path("bag"))
        for size in (1, 2):
            np.testing.assert_allclose(predict(model, ids, size), expected, rtol=1e-5)
        print(model.precision, model.threads, "torch" in sys.modules)
        """,
    )
    assert output == "fp32 1 False\n"


def test_the_example_of_a_data_set_is_read_and_split(extended):
    classes = ["1", "2", "3"]
    with open(extended / "reviews.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"])
        writer.writerows([f"review number {i}", classes[i % 3]] for i in range(1200))
    done = run(extended, "make", "data", "PROFILE=reviews")
    assert done.returncode == 0, done.stderr[-3000:]
    card = json.loads((extended / "build/reviews/data/seed0/data.json").read_text("utf-8"))
    assert card["labels"] == classes
    sizes = {name: split["sentences"] for name, split in card["splits"].items()}
    assert sizes == {"train": 600, "validation": 300, "test": 300}


def test_the_groups_and_the_grid_of_the_page_on_data_list_their_variants(monkeypatch, tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "own-data.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "mine.toml").write_text("".join(blocks), "utf-8")
    monkeypatch.setattr("compress.config.profile.PROFILES", tmp_path)
    names = [variant.name for variant in load_profile("mine").variants]
    assert names[:5] == ["finetuned", "int8", "cluster-8", "cluster-16", "ort-int8"]
    assert set(names[5:]) == {f"{m}-ort-{p}" for m in ("finetuned", "cluster-16") for p in ("fp32", "int8")}


def test_the_example_of_a_figure_is_drawn_and_captioned(extended):
    output = in_clone(
        extended,
        """
        from compress.config.profile import load_profile
        from compress.report.gallery import draw_one, figures
        from compress.report.pages import report_pages
        from compress.results.reading import read_results

        profile = load_profile("minilm")
        results = read_results(profile)
        draw_one(profile.figures, "sizes", figures(profile, results)["sizes"])
        print(report_pages(profile, results)["report"])
        """,
    )
    assert (extended / "figures/minilm/sizes.png").stat().st_size > 10_000
    assert re.search(r"\n!\[`[\w-]+` needs [\d.]+ % of the baseline's bytes\.\]\(.*/sizes\.png\)\n", output)
