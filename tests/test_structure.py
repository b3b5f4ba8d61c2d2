"""The structure of the code: import rules, and docstrings that say what a thing does."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOP = ("main", "test", "options", "model", "wsad_dataset")
FILES = sorted(
    path
    for path in [*ROOT.glob("*.py"), *(p for d in ("utils", "eval", "scripts") for p in (ROOT / d).rglob("*.py"))]
    if path.name != "setup.py"
)
# Lower layers first. A module imports from its own layer and from those below.
LAYERS = (
    ("model", "utils.errors", "utils.number_types", "utils.losses"),
    ("utils.formats", "utils.datasets", "utils.segments", "utils.fusion"),
    ("utils.annotations",),
    ("eval", "utils.features", "utils.video", "utils.sampler", "utils.run", "utils.checkpoint"),
    ("wsad_dataset", "utils.methods", "utils.subsets", "utils.training", "utils.pseudo_labels"),
    ("utils.engine", "options"),
    ("utils.detector", "utils.results", "utils.second_stage", "utils.trained"),
    ("main", "test"),
    ("scripts",),
)
FIRST_WORDS = re.compile(r"(What|Which|Whether|Those|How|Where|Of|All|That)\b")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Modules of the project that a file imports, and whether at the top level of the file."""
    tree = ast.parse(path.read_text())
    top_level = set(tree.body)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, node in top_level) for name in names if name in MODULES]
    return found


MODULES = {module_name(path): path for path in FILES}
IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def layer_of(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return 1  # a new module, as utils.fusion


def test_no_module_imports_from_a_higher_layer():
    upward = [
        f"{name} imports {other}"
        for name, imports in IMPORTS.items()
        if name not in ("utils", "eval")
        for other, _ in imports
        if other not in ("utils", "eval") and layer_of(other) > layer_of(name)
    ]
    assert not upward


def test_imports_have_no_cycle():
    graph = {name: {other for other, _ in imports if other != name} for name, imports in IMPORTS.items()}
    # A package that re-exports its modules is not a cycle with modules that import it for nothing else.
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_import_of_the_project_inside_a_function():
    assert not [f"{name} imports {other}" for name, imports in IMPORTS.items() for other, top in imports if not top]


@pytest.mark.parametrize("module", ["model", "utils.losses"])
def test_model_and_losses_import_torch_only(module):
    assert not IMPORTS[module]
    text = MODULES[module].read_text()
    libraries = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert libraries <= {"torch", "math", "collections", "functools"}


def test_only_entry_points_see_the_parsed_options():
    users = {name for name, imports in IMPORTS.items() if any(other == "options" for other, _ in imports)}
    assert all(name in ("main", "test", "utils.trained") or name.startswith("scripts") for name in users)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun(path):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    documented = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    docstrings = [ast.get_docstring(node) or "" for node in documented]
    assert not [text.split("\n")[0] for text in docstrings if FIRST_WORDS.match(text)]


def test_no_two_methods_share_six_lines():
    owners: dict[tuple[str, ...], str] = {}
    for path in sorted((ROOT / "utils" / "methods").glob("*.py")):
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        for start in range(len(lines) - 5):
            six = tuple(lines[start : start + 6])
            owner = owners.setdefault(six, path.name)
            assert owner == path.name, f"{owner} and {path.name} share\n" + "\n".join(six)
