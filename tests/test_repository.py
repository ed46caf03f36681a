"""The repository's own promises: the lock and conda agree, README and report say what results/ says."""

import dataclasses
import fcntl
import re
import subprocess
import sys
import time
from importlib.metadata import version

import nbformat
import pytest
import yaml
from compress.config.profile import load_profile
from compress.errors import UserError
from compress.report import comparisons, formats, notebook, pages
from compress.results.reading import read_results
from conftest import ROOT, has_own_results, run


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.M))


def test_conda_and_venv_install_the_same_closure():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert conda.keys() == {"name", "channels", "dependencies"}
    assert conda["channels"] == ["conda-forge"]
    *plain, nested = conda["dependencies"]
    assert nested == {"pip": ["-r requirements.txt"]}
    assert [re.fullmatch(r"(\w+)={1,2}\d[\w.*]*", item).group(1) for item in plain] == ["python", "pip"]
    assert f"CONDA_NAME := {conda['name']}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_an_activated_conda_environment_is_used_as_it_is():
    def plan(**environment):
        command = ("make", "--dry-run", "--always-make", "finetune", "PROFILE=smoke")
        return run(ROOT, *command, CONDA_DEFAULT_ENV=environment.get("conda", "")).stdout

    name = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["name"]
    assert ".venv" not in plan(conda=name)
    assert "\npython  scripts/01_finetune.py" in plan(conda=name)
    assert ".venv/bin/python -m pip install" in plan(conda="base")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"conda env create -f environment.yml && conda activate {name} && make all" in readme


def test_the_lock_pins_all_that_is_asked_for():
    asked = (ROOT / "requirements.in").read_text("utf-8")
    locked = pins((ROOT / "requirements.txt").read_text("utf-8"))
    assert pins(asked).items() <= locked.items()
    names = re.findall(r"^([\w.-]+)(?![^\n]*python_version)", asked, re.M)
    assert {name.lower() for name in names} <= set(locked)
    assert not any("+" in version for version in locked.values()), "a local build is no pin others can install"


def test_the_installed_environment_is_the_locked_one():
    for name, pinned in pins((ROOT / "requirements.txt").read_text("utf-8")).items():
        assert version(name).split("+")[0] == pinned, name


@pytest.mark.committed
@pytest.mark.parametrize("name", ["minilm", "bert-base-shape"])
def test_the_committed_pages_are_those_of_the_committed_results(name):
    profile = load_profile(name)
    for path, text in pages.documents(profile, read_results(profile)).items():
        assert path.read_text("utf-8") == text, f"{path}: run make report PROFILE={name}"
        if path.suffix == ".md":
            assert not re.search(r"[^\n]\n!\[", text), f"{path}: a figure inside a paragraph has no caption in LaTeX"


@pytest.mark.committed
def test_a_changed_result_changes_every_page_that_shows_it():
    profile = load_profile("minilm")
    results = read_results(profile)
    kept = comparisons.keeping(row for row in results.variants if row.chapter == "HW4")
    before = pages.report_pages(profile, results)
    learned = comparisons.lowest(kept, "size_mb"), comparisons.highest(kept, "latency_speedup")
    name = next(row.variant for row in learned if f"| `{row.variant}` (" in before["decide"])
    assert f"`{name}`" in before["hw4"].split("## What we learned")[1].split("## Negative results")[0]
    worse = [dataclasses.replace(r, f1_test=0.5, f1_drop_points=36.0) if r.variant == name else r for r in results.rows]
    pooled = {"f1_mean": 0.5, "drop_mean": 36.0, "non_inferior": False, "accuracy_drop_mean": 36.0, "p_adjusted": 1e-9}
    seeds = [dataclasses.replace(r, **pooled) if r.variant == name else r for r in results.seeds]
    changed = dataclasses.replace(results, rows=worse, seeds=seeds)
    after = pages.report_pages(profile, changed)
    assert pages.front_page(profile, changed) != pages.front_page(profile, results)
    different = {page for page in after if after[page] != before[page]}
    assert {"report", "hw4", "decide"} <= different <= set(after) - {"hw3", "hw7"}
    assert f"| `{name}` (" not in after["decide"]
    learned, negative = after["hw4"].split("## Negative results")
    assert f"`{name}`" not in learned.split("## What we learned")[1]
    assert f"`{name}`" in negative.split("\n- Slower")[0]


def test_results_are_ones_own_from_a_change_until_it_is_staged(tmp_path):
    assert not has_own_results(tmp_path)  # no git checkout
    table = tmp_path / "results" / "a.csv"
    table.parent.mkdir()
    table.write_text("committed", "utf-8")
    run(tmp_path, "git", "init", "--quiet")
    run(tmp_path, "git", "add", "results")
    assert not has_own_results(tmp_path)
    table.write_text("changed", "utf-8")
    assert has_own_results(tmp_path)
    run(tmp_path, "git", "add", "results")
    assert not has_own_results(tmp_path)


def test_an_unknown_citation_is_an_error_and_only_cited_works_are_listed():
    text = formats.write_citations("As @holm1979 says [@guo2017calibration, sec. 2;\n@hinton2015distilling].")
    assert text.startswith(
        "As Holm (1979) says (Guo et al. 2017, sec. 2; Hinton et al. 2015).\n\n## References\n\n- Guo"
    )
    assert text.count("\n- ") == 3
    with pytest.raises(UserError, match="nobody1999"):
        formats.write_citations("[@holm1979; @nobody1999]")


def test_sections_have_numbers_appendices_letters_and_references_both():
    text = "## Abstract\n\nSee [](#second-part), [](#appendix-raw-data), [](#not-there).\n\n## First\n\n### Below\n\n"
    text += "## Second part\n\n### It's below\n\n## Appendix: raw data\n\n### Rows\n\n## References\n"
    done = formats.link_sections(formats.number_sections(text))
    assert "See [section 2](#2-second-part), [appendix A](#appendix-a-raw-data), not there." in done
    titles = ["Abstract", "1 First", "1.1 Below", "2 Second part", "2.1 It's below"]
    titles += ["Appendix A: raw data", "A.1 Rows", "References"]
    assert re.findall(r"^###? (.+)$", done, re.M) == titles
    assert "**Contents**\n\n- [1 First](#1-first)\n- [2 Second part](#2-second-part)\n- [Appendix A" in done
    assert formats.slug("2.1 It's below") == "21-its-below"
    assert formats.link_sections("[](#first)\n\n## First\n") == "[First](#first)\n\n## First\n"


@pytest.mark.committed
def test_every_section_of_the_report_is_listed_once_and_every_reference_leads_to_one():
    listed = subprocess.run(["git", "ls-files", "report"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for page in (ROOT / path for path in listed.split() if path.endswith(".md")):
        text = without_code(page)
        assert not re.findall(r"[^\n]\n(#+ .*)", text), f"{page}: a blank line precedes every heading"
        assert "[](" not in text, page
        if page.name == "report.md":
            sections = [title for title in re.findall(r"^## (.+)$", text, re.M) if title not in formats.UNNUMBERED]
            assert re.findall(r"^- \[(.+)\]\(#", text, re.M) == sections
            tex = page.with_suffix(".tex").read_text("utf-8")
            assert "Contents" not in tex
            labels = set(re.findall(r"\\label\{([^}]+)\}", tex))
            assert set(re.findall(r"\\hyperref\[([^]]+)\]", tex)) <= labels


@pytest.mark.committed
def test_the_main_part_of_the_report_is_short_and_its_pages_share_its_sections():
    report = (ROOT / "report" / "report.md").read_text("utf-8")
    main = report[: report.index("\n## Appendix A")]
    prose = re.sub(r"^(\||!\[).*$|^\$\$.*\$\$$", "", main, flags=re.M)
    assert len(prose.split()) < 7000
    for homework, sections in comparisons.SECTIONS.items():
        page = (ROOT / "report" / f"{homework.lower()}.md").read_text("utf-8")
        assert page.split("\n# ")[1].startswith(f"Homework {homework[2:]}: ")
        for section in sections:
            title = re.search(r"^## (.+)$", (ROOT / f"report/chapters/{section}.md.j2").read_text("utf-8"), re.M)[1]
            paragraphs = page.split(f"## {title}\n\n")[1].split("\n\n")
            assert formats.slug(title) == section
            assert next(text for text in paragraphs if not text.startswith("#")) in main


@pytest.mark.committed
def test_the_first_sentence_of_every_caption_has_a_number():
    text = (ROOT / "report" / "report.md").read_text("utf-8")
    figures = re.findall(r"^!\[(.*)\]\(.*\.png\)\n\n\*(.*)\*$", text, re.M)
    assert len(figures) == text.count("![")
    for sentence, caption in figures:
        assert caption.startswith(sentence)
        assert re.search(r"\d", re.sub(r"`[^`]*`|F1", "", sentence)), caption


def test_the_html_is_one_file_with_contents_figures_formulas_and_tables_that_sort(smoke, browser):
    from selenium.webdriver.common.by import By

    folder = smoke[0] / "report" / "smoke"
    html, markdown = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    assert len(html.encode()) < 3e6
    assert html.count("<math ") == len(formats.MATH.findall(markdown)) > 10
    browser.get((folder / "report.html").as_uri())
    images = browser.find_elements(By.TAG_NAME, "img")
    assert {image.get_attribute("src")[:19] for image in images} == {"data:image/svg+xml;"}
    assert all(image.get_property("naturalWidth") > 100 for image in images)
    sections = [link.get_attribute("hash") for link in browser.find_elements(By.CSS_SELECTOR, "#TOC a")]
    assert len(sections) == len(re.findall(r"^###? ", re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S), re.M))
    assert all(browser.find_element(By.ID, section[1:]) for section in sections)
    costs = [t for t in browser.find_elements(By.TAG_NAME, "table") if t.text.startswith("Variant MB")]
    table = max(costs, key=lambda table: len(table.text))
    head, column = table.find_elements(By.TAG_NAME, "th")[1], 2

    def sizes() -> list[float]:
        cells = table.find_elements(By.CSS_SELECTOR, f"td:nth-child({column})")
        return [float(cell.text) for cell in cells if cell.text]

    before = sizes()
    browser.execute_script("arguments[0].click()", head)
    assert sizes() == sorted(before) != before
    browser.execute_script("arguments[0].click()", head)
    assert sizes() == sorted(before, reverse=True)
    page = browser.find_element(By.TAG_NAME, "html")
    brighter = {}
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        paper, ink = (page.value_of_css_property(name) for name in ("background-color", "color"))
        brighter[scheme] = int(re.search(r"\d+", paper)[0]) - int(re.search(r"\d+", ink)[0])  # of red, 0 to 255
    assert brighter["light"] > 150
    assert brighter["dark"] < -150
    assert not browser.get_log("browser")


@pytest.mark.committed
def test_every_link_between_pages_has_a_target():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "report").glob("**/*.md")]:
        links = re.findall(r"\]\(((?!\w+://)[^)#]*)(?:#([^)]*))?\)", without_code(page))
        for target, anchor in links:
            there = page.parent / target if target else page
            assert there.exists(), (page, target)
            assert not anchor or anchor in map(formats.slug, headings(there)), (page, target, anchor)


def without_code(page):
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)


def headings(page):
    return re.findall(r"^#+ (.+)$", without_code(page), re.M)


@pytest.mark.committed
def test_the_committed_notebooks_are_those_of_the_chapters():
    profile = load_profile("minilm")
    expected = notebook.chapter_notebooks(profile, read_results(profile))
    assert sorted(path.stem for path in notebook.NOTEBOOKS.glob("*.ipynb")) == sorted(expected)
    for name, chapter in expected.items():
        committed = nbformat.read(notebook.NOTEBOOKS / f"{name}.ipynb", as_version=4)
        nbformat.validate(committed)
        cells = [(cell.id, cell.source) for cell in committed.cells]
        assert cells == [(cell.id, cell.source) for cell in chapter.cells], f"{name}: run make notebooks"
        assert all(cell.get("execution_count") or "local" in cell.metadata.tags for cell in code(committed))


@pytest.mark.committed
def test_a_notebook_executed_again_has_the_same_outputs():
    profile = load_profile("minilm")
    chapter = notebook.chapter_notebooks(profile, read_results(profile))["hw2"]
    notebook.execute(chapter)
    committed = nbformat.read(notebook.NOTEBOOKS / "hw2.ipynb", as_version=4)
    assert [printed(cell) for cell in code(chapter)] == [printed(cell) for cell in code(committed)]


def test_an_unknown_chapter_is_an_error_that_lists_the_chapters():
    profile = load_profile("minilm")
    with pytest.raises(UserError, match="hw5: no such chapter; there are hw1, hw2, hw3, hw4, hw6, hw7"):
        notebook.write_notebooks(profile, read_results(profile), ["hw5"])


def code(chapter) -> list:
    return [cell for cell in chapter.cells if cell.cell_type == "code"]


def printed(cell) -> list[str]:
    return [output.get("text") or output["data"]["text/plain"] for output in cell.outputs]


def test_the_five_lines_of_the_decision_page_load_the_variant(smoke):
    folder, _ = smoke
    page = (folder / "report" / "smoke" / "decide.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(block.splitlines()) == 5
    lines = re.findall(r"^\| `([^`]+)` \|.*?\| (\d+) \| \w+ \| [^|]+ \|$", page, re.M)
    assert f"/{lines[0][0]}" in block
    assert f"threads={lines[0][1]}" in block
    blocks = [
        block.replace(f"/{lines[0][0]}", f"/{name}").replace(f"threads={lines[0][1]}", f"threads={threads}")
        for name, threads in lines
    ]
    done = run(folder, sys.executable, "-c", "".join(blocks), PYTHONPATH="scripts")
    printed = r"(\[\[ *-?[\d.]+ +-?[\d.]+ *\]\]\n)" + f"{{{len(lines)}}}"
    assert re.fullmatch(printed, done.stdout), done.stdout + done.stderr


def test_help_is_quick_and_long_for_every_script():
    for script in sorted((ROOT / "scripts").glob("*.py")):
        if script.name == "with_lock.py":
            continue
        started = time.perf_counter()
        done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
        assert time.perf_counter() - started < 1.5, script.name
        assert "Example:" in done.stdout


def test_a_second_run_stops_and_says_why(tmp_path):
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
    code = f"import sys, compress.config.profile as p; p.load_profile('smoke'); sys.exit({name!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=True)
