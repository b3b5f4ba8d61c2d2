"""README and docs agree with the code: paths, commands, options, links, names and examples."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval.detection
import eval.diagnosis
import main
import scripts.detect
import scripts.report
import utils.features.check
from utils.methods import METHODS
from utils.methods.hamnet import HAMLoss, HAMNet

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# A command of these writes the page, so the page may name an older tree.
WRITTEN = ("docs/results.md", "docs/performance.md", "docs/reliability.md")
HAND_WRITTEN = [name for name in NAMES if name not in WRITTEN]
MAX_COLUMNS = 90

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:(?:configs|docs|eval|scripts|tests|utils)/[\w./*-]*|\w+\.(?:py|cff|toml|lock))")
NAMED = re.compile(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)")
PLACEHOLDER = re.compile(r"mine|my_|kitchen|[A-Z]{4}")  # files that a reader writes
WALK = {
    "utils.features": utils.features.check.main,
    "main.py": main.main,
    "scripts/report.py": scripts.report.main,
    "eval.detection": eval.detection.main,
    "eval.diagnosis": eval.diagnosis.main,
    "scripts/detect.py": scripts.detect.main,
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    return [code for _, language, code in BLOCK.findall(text_of(name)) if language in languages]


def commands(name: str) -> list[str]:
    """Return the shell commands of a page, from its code blocks and its inline code."""
    lines = [line for code in blocks(name, "bash") for line in code.replace("\\\n", " ").splitlines()]
    inline = INLINE.findall(BLOCK.sub("", text_of(name)))
    return [line.split("  #")[0].strip() for line in (*lines, *inline)]


def program(command: str) -> tuple[str, list[str]] | None:
    """Return the Python program that a command runs, and the command's words; None for any other command."""
    if command.startswith("#") or command.split(" ")[0] not in ("python", "torchrun", "bash", "srun"):
        return None
    words = shlex.split(command)
    if words[0] == "bash":
        programs = {"scripts/train.sh": "main.py", "scripts/gpu.sh": "scripts.reproduction.gpu"}
        return (programs[words[1]], words) if words[1] in programs else None
    if words[1:2] == ["-m"]:
        return words[2], words[3:]
    scripts = [index for index, word in enumerate(words) if word.endswith(".py")]
    return (words[scripts[0]], words[scripts[0] :]) if scripts else None


# Prints the --help of every program that it is given, as JSON; one process, so that PyTorch is imported once.
HELP = """
import contextlib, io, json, os, runpy, sys
texts, path = {}, sys.path
for name in sys.argv[1:]:
    sys.argv, sys.path = [name, "--help"], [os.path.dirname(name) or ".", ".", *path]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        run = runpy.run_path if name.endswith(".py") else runpy.run_module
        run(name, run_name="__main__")
    texts[name] = text.getvalue()
print(json.dumps(texts))
"""


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Return the options of every program that the pages name, by program, from its --help."""
    called = [program(command) for page in HAND_WRITTEN for command in commands(page)]
    names = sorted({script for script, _ in filter(None, called)}, key=lambda name: "benchmark" not in name)
    done = subprocess.run([sys.executable, "-c", HELP, *names], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {name: set(OPTION.findall(text)) for name, text in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_commands_and_their_options_exist(name, options):
    for command in commands(name):
        if called := program(command):
            script, words = called
            for word in words:
                option = word.split("=")[0]
                if option.startswith("--"):
                    assert option in options[script], f"{name}: {script} has no option {option}, in: {command}"


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_options_named_in_the_text_exist(name, options):
    known = set().union(*options.values(), {"--nnodes", "--nproc_per_node", "--max-restarts"})  # torchrun's
    for code in INLINE.findall(BLOCK.sub("", text_of(name))):
        for option in OPTION.findall(code):
            assert option in known or PLACEHOLDER.search(code), f"{name}: no program has the option {option}"


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_paths_exist(name):
    text = text_of(name)
    pieces = INLINE.findall(BLOCK.sub("", text)) + [code for _, language, code in BLOCK.findall(text) if language]
    for path in {path.rstrip(".") for piece in pieces for path in PATH.findall(piece)}:
        if not PLACEHOLDER.search(path):
            assert any(ROOT.glob(path.rstrip("/"))), f"{name}: {path} does not exist"


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md"])
def test_names_in_file_trees_exist(page):
    (tree,) = (code for code in blocks(page, "") if code.startswith("main.py"))
    folder = ""
    for line in tree.splitlines():
        names = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        if line.startswith("   ") or not names:  # the second line of an entry
            continue
        folder = folder if line.startswith("  ") else ""
        for name in names.split(", "):
            assert (ROOT / folder / name).exists(), f"{page}: {folder}{name} does not exist"
        if not line.startswith(" ") and names.endswith("/"):
            folder = names


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_names_in_files_exist(name):
    """Check each `file.py`: `name`, `name`."""
    for file, names in NAMED.findall(text_of(name)):
        if not PLACEHOLDER.search(file):
            code = text_of(file)
            for definition in INLINE.findall(names):
                found = re.search(rf"^\s*(?:def|class) {definition}\b|^{definition}\b.* = ", code, re.MULTILINE)
                assert found, f"{name}: {file} has no {definition}"


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name):
    for target in LINK.findall(BLOCK.sub("", text_of(name))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name}: the link {target} leads nowhere"
        if anchor:
            assert anchor in anchors(page), f"{name}: {page.name} has no section #{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's sections, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_code_blocks_fit_the_page(name):
    for _, _, code in BLOCK.findall(text_of(name)):
        for line in code.splitlines():
            assert len(line) <= MAX_COLUMNS, f"{name}: {len(line)} columns: {line}"


def test_every_page_is_in_the_index():
    linked = set(LINK.findall(text_of("docs/README.md")))
    assert {page.name for page in PAGES[1:]} - {"README.md"} <= linked


def test_own_dataset_walk(tmp_path, monkeypatch, run_main):
    """Run each step of a dataset of one's own in docs/data.md, with few iterations."""
    section = text_of("docs/data.md").partition("## Your own dataset")[2].partition("\n## ")[0]
    steps = [(language, code) for _, language, code in BLOCK.findall(section)]
    assert [language for language, _ in steps] == ["python", "yaml", "bash", "bash", "bash"]
    monkeypatch.chdir(tmp_path)
    exec(compile(steps[0][1], "docs/data.md", "exec"), {})
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/kitchen.yaml").write_text(steps[1][1])
    printed = {}
    for line in "".join(code.replace("\\\n", " ") for _, code in steps[2:]).splitlines():
        name, words = program(line)
        words = words[1:] if name.endswith(".py") else words
        words += ["--max-iter", "2", "--eval-every", "2", "--device", "cpu"] if name == "main.py" else []
        status, printed[name], error = run_main(WALK[name], *words)
        assert status == 0, f"{line}: {error}"
    assert set(printed) == set(WALK)
    assert "0 errors, 0 warnings" in printed["utils.features"]
    assert "mAP" in printed["eval.detection"] and "[24/24]" in printed["scripts/detect.py"]
    assert (tmp_path / "runs/kitchen/report.html").is_file()
    assert (tmp_path / "runs/kitchen_detections/report.html").is_file()


def test_method_example_trains():
    """Run the Python blocks of docs/extending.md, and one step of the method that they define."""
    names = {}
    for code in blocks("docs/extending.md", "python"):
        exec(compile(code, "docs/extending.md", "exec"), names)
    attention = names["GatedAttentionUnit"](6)(torch.rand(2, 6, 9))
    assert attention.shape == (2, 9)
    outputs = HAMNet(3, (4, 2)).eval()(torch.rand(2, 9, 6))
    arguments = outputs, torch.eye(3)[:2], torch.zeros(0, 2, dtype=torch.long)
    ours, example = HAMLoss()(*arguments), names["HAMLoss"]()(*arguments)
    assert names["HAMLoss"] is not HAMLoss and ours == example and names["defaults"] == METHODS["hamnet"].defaults
    definition = names["DEFINITION"]
    network, objective = definition.network(3, [4, 2]), definition.objective(weights={"norm": 0.5})
    terms = objective(network(torch.rand(2, 9, 6)), torch.eye(3)[:2], torch.tensor([[0, 1]]))
    terms["total"].backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_examples_of_changes_apply():
    """Check that each change in docs/extending.md fits the file that the text before it names, and still compiles."""
    text = text_of("docs/extending.md")
    changed = {}
    for found in BLOCK.finditer(text):
        if found[2] == "diff":
            file = re.findall(r"`([\w/]+\.(?:py|yaml))`", text[: found.start()])[-1]
            code = changed.get(file, text_of(file))
            for hunk in re.split(r"^@@.*\n", found[3], flags=re.MULTILINE):
                lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
                before = "".join(line for mark, line in lines if mark != "+")
                after = "".join(line for mark, line in lines if mark != "-")
                assert code.count(before) == 1, f"docs/extending.md: {file} has {code.count(before)} of:\n{before}"
                code = code.replace(before, after)
            changed[file] = code
    assert changed
    for file, code in changed.items():
        if file.endswith(".py"):
            compile(code, file, "exec")
