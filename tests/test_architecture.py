"""The packages of scripts/compress: the direction of imports, no cycles, every name once; and their map in the docs."""

import ast
import re
from collections import Counter
from functools import cache

import pytest
from conftest import ROOT

SCRIPTS = ROOT / "scripts"
# A package imports only from those before it; modules without a package are the base, which all may import.
ORDER = ("base", "config", "storage", "data", "engines", "methods", "graph", "measure", "results", "report")
# What functions may import, because it takes a tenth of a second or more.
HEAVY = {"datasets", "evaluate", "nncf", "onnx", "optimum", "scipy", "sklearn", "torch", "torchao"}
BESIDE = {"serving": ORDER[:5], "loadtest": (*ORDER[:5], "serving")}
MODULES = sorted(path for path in (SCRIPTS / "compress").rglob("*.py") if path.name != "__init__.py")


def name_of(path):
    return ".".join(path.relative_to(SCRIPTS).with_suffix("").parts)


NAMES = {name_of(path) for path in MODULES}


def package(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else "base"


@cache
def imports(path):
    """Modules of this repository that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & NAMES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_imports_only_from_those_before_it(path):
    own = package(name_of(path))
    allowed = {own, *BESIDE.get(own, ORDER[: ORDER.index(own) + 1] if own in ORDER else ())}
    assert own in ORDER or own in BESIDE, f"{own} has no place in the order of packages"
    assert {name for name in imports(path) if package(name) not in allowed} == set()


def test_no_circular_imports():
    graph = {name_of(path): set(imports(path)) for path in MODULES}
    while free := {name for name, needed in graph.items() if not needed & graph.keys()}:
        graph = {name: needed for name, needed in graph.items() if name not in free}
    assert graph == {}


def test_nothing_imports_a_script():
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    for path in (*MODULES, *SCRIPTS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not scripts & {name.split(".")[0] for name in names}, path


def test_no_two_modules_and_no_two_public_functions_share_a_name():
    stems = Counter(path.stem for path in MODULES)
    assert [name for name, count in stems.items() if count > 1] == []
    functions = Counter(
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    )
    assert [name for name, count in functions.items() if count > 1 and name != "main"] == []


PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
STEP = re.compile(r"^\| \d+ \|.*\| `(compress/\S+)` \| `(\w+)` \|$", re.MULTILINE)


def mapped_paths():
    """The paths in the page's tree, whose indentation shows the folders; each line needs a description."""
    tree = re.search(r"^## Packages and files\n\n```\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[1]
    folders, paths = [], []
    for line in tree.splitlines():
        indent, name, about = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        folders[len(indent) // 2 :] = [name.rstrip("/")]
        assert about or name in ("scripts/", "compress/", "peers/"), f"{name} has no description"
        paths.append("/".join(folders))
    return paths


def test_the_map_has_every_file_once_and_no_others():
    paths = mapped_paths()
    assert len(paths) == len(set(paths))
    assert [path for path in paths if path != "build" and not (ROOT / path).exists()] == []
    scripts = [*MODULES, *SCRIPTS.glob("*.py"), *SCRIPTS.glob("peers/*.py")]
    assert {path for path in paths if path.endswith(".py")} == {str(path.relative_to(ROOT)) for path in scripts}


def test_the_map_shows_the_order_of_packages():
    lines = [tuple(line.split(" -> ")) for line in re.findall(r"^base -> .*$", PAGE, re.MULTILINE)]
    assert lines == [ORDER, (*BESIDE["serving"], "serving", "loadtest")]


def test_the_steps_in_a_variants_life_name_functions_that_exist():
    steps = STEP.findall(PAGE)
    assert len(steps) == 10
    for file, function in steps:
        tree = ast.parse((SCRIPTS / file).read_text("utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, file


def test_library_functions_import_only_heavy_libraries_and_their_modules_say_so():
    for path in MODULES:
        tree = ast.parse(path.read_text("utf-8"))
        inner = [
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        for node in inner:
            name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert name.split(".")[0] in HEAVY, f"{path}: {name} is light: import it at the top"
        if inner:
            assert re.search(r"\bimport(s|ed)?\b", ast.get_docstring(tree)), (
                f"{path}: its docstring doesn't say why a function imports"
            )
