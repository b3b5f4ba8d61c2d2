"""Hostile JSON, YAML, CSV and checksums: code in tags, depth, doubled names, and values of another kind."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from tests.torture.case import (
    Case,
    read_annotations,
    read_config,
    read_csv,
    read_evaluated,
    read_features,
    read_report,
)

DEPTH = 100_000

# YAML that would run something; {path} is the sentinel.
TAGS = {
    "apply os.system": "!!python/object/apply:os.system [\"mkdir '{path}'\"]",
    "apply os.mkdir": "!!python/object/apply:os.mkdir ['{path}']",
    "apply eval": "!!python/object/apply:builtins.eval [\"__import__('os').mkdir('{path}')\"]",
    "apply exec": "!!python/object/apply:builtins.exec [\"import os; os.mkdir('{path}')\"]",
    "apply with keywords": "!!python/object/apply:os.mkdir {{args: ['{path}']}}",
    "new": "!!python/object/new:os.mkdir ['{path}']",
    "new numpy.memmap": "!!python/object/new:numpy.memmap ['{path}', u1, w+]",
    "object": "!!python/object:pathlib.Path {{}}",
    "name": "!!python/name:os.mkdir",
    "module": "!!python/module:antigravity",
    "tuple": "!!python/tuple [1, 2]",
    "bytes": "!!python/bytes 'aGk='",
    "own": "!color red",
    "local": "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{path}']",
}
ALIASES = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))
YAMLS = {
    "aliases that multiply": "a0: &a0 [lol]\n" + ALIASES,
    "an alias of itself": "lr: &a [*a]",
    "a merge": "x: &x {lr: 1}\n<<: *x",
    "brackets 100,000 deep": "lr: " + "[" * DEPTH,
    "brackets 900 deep": "lr: " + "[" * 900 + "]" * 900,
    "braces 900 deep": "lr: " + "{a: " * 900,
    "dashes 20,000 deep": "- " * 20_000,
    "lines 250 deep": "\n".join(" " * n + "a:" for n in range(250)),
    "a number of 60,000 digits": "lr: " + "9" * 60_000,
    "a number in base 60": "max_iter: 1:" + "59:" * 2000 + "59",
    "a text of 65,000": "lr: " + "x" * 65_000,
    "a date that is none": "lr: 2001-99-99",
    "a key that is a list": "? [a, b]\n: 1",
    "a key that is a dict": "? {a: b}\n: 1",
    "two documents": "lr: 1\n---\nlr: 2",
    "a null byte": "lr: 1\0",
    "no text": "\xff\xfe",
    "a base that is a device": "base: /dev/zero",
    "a base that is a pipe of nothing": "base: /dev/stdin",
    "a base that is a folder": "base: ..",
    "a base that is itself": "base: config.yaml",
    "a base of lists": "base: [a, [b]]",
    "a base with a null byte": 'base: "a\\0b"',
}
USABLE = ("a number in base 60",)  # YAML 1.1 has such


def yaml_cases() -> Iterator[Case]:
    """As a config, and as the options.yaml of a run."""
    texts = {name: f"lr: {tag}\n" for name, tag in TAGS.items()}
    for name, text in {**texts, **YAMLS}.items():
        for place, file, read in (("config", "config.yaml", read_config), ("run", "run/options.yaml", read_report)):
            write = _text_writer(file, text, formatted=name in TAGS)
            yield Case("YAML", f"{name}, {file}", place, write, read, name not in USABLE)


NESTED = "[" * DEPTH + "]" * DEPTH
JSONS = {
    "lists 100,000 deep": NESTED,
    "dicts 100,000 deep": '{"a": ' * DEPTH + "1" + "}" * DEPTH,
    "lists 900 deep": "[" * 900 + "]" * 900,
    "a number of 100,000 digits": "1" * DEPTH,
    "1e999": '{"database": 1e999}',
    "NaN": "NaN",
    "a name twice": '{"a": 1, "a": 2}',
    "null": "null",
    "a number": "5",
    "a text": '"text"',
    "a list": "[]",
    "nothing": "",
    "blanks": " \n" * 1000,
    "half a surrogate": '{"\\ud800": "\\udfff"}',
    "no UTF-8": '{"a": "\xff"}',
    "UTF-16": '{"a": 1}',
    "a null byte": '{"a": "\0"}',
    "a comment": "// {}\n{}",
    "code": "__import__('os').mkdir('x')",
}
JSON_PLACES = (
    ("annotations", "annotations.json", read_annotations),
    ("evaluation", "detections.json", read_evaluated),
    ("run", "run/metrics.json", read_report),
    ("run", "run/environment.json", read_report),
    ("run", "run/log.jsonl", read_report),
    ("run", "run/detections.json", read_report),
    ("npy folders", "features.json", read_features),
)


def json_cases() -> Iterator[Case]:
    """What is no JSON, too deep, or another kind of value, in every file of JSON."""
    for name, text in JSONS.items():
        for place, file, read in JSON_PLACES:
            # A log may have no lines, and an environment any names.
            harmless = file.endswith("log.jsonl") and not text.strip()
            harmless = harmless or (file.endswith("environment.json") and name in ("1e999", "half a surrogate"))
            encoding = {"no UTF-8": "latin1", "UTF-16": "utf-16"}.get(name, "utf-8")
            write = _text_writer(file, text, encoding=encoding)
            yield Case("JSON", f"{name}, {file}", place, write, read, not harmless)


HEAD, ROW = "video-id,t-start,t-end,label,score\n", "test_0012,1.5,4.5,Clap,0.5\n"
CSVS = {
    "a field too many": HEAD + ROW.replace("0.5", "0,5"),
    "a field too few": HEAD + "test_0012,1.5,4.5,Clap\n",
    "a quote left open": HEAD + '"' + ROW * 3,
    "a field of 200,000 letters": HEAD + ROW.replace("Clap", "C" * 200_000),
    "NaN": HEAD + ROW.replace("0.5", "nan"),
    "1e999": HEAD + ROW.replace("0.5", "1e999"),
    "a null byte": HEAD + ROW.replace("Clap", "Cl\0p").replace("1.5", "1\0"),
    "a column twice": HEAD.strip() + ",score\n" + ROW.strip() + ",0.9\n",
    "a column of no name": HEAD.replace("score", "scope") + ROW,
    "a formula": HEAD + ROW.replace("1.5", "=cmd|' /C calc'!A0"),
}


def csv_cases() -> Iterator[Case]:
    for name, text in CSVS.items():
        write = _text_writer("detections.csv", text)
        yield Case("CSV", name, "evaluation", write, read_csv)


SUMS = {
    "no sums": "hello\n",
    "a path": f"{'0' * 64}  ../../etc/passwd\n",
    "another sum": f"{'0' * 64}  annotations.json\n",
    "no text": "\xff\xfe\x00",
    "an empty name": f"{'0' * 64}  \n",
    "half a line": "0" * 64,
    "letters that are digits": "٣" * 64 + "  annotations.json\n",
}


def sums_cases() -> Iterator[Case]:
    for name, text in SUMS.items():
        write = _text_writer("SHA256SUMS", text, encoding="latin1" if name == "no text" else "utf-8")
        yield Case("SHA256SUMS", name, "annotations", write, read_annotations)


def _text_writer(
    file: str, text: str, formatted: bool = False, encoding: str = "utf-8"
) -> Callable[[Path, Path], None]:
    def make(folder: Path, sentinel: Path) -> None:
        written = text.format(path=sentinel) if formatted else text
        (folder / file).write_bytes(written.encode(encoding))

    return make


OTHER_VALUES = (
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    float("nan"),
    "",
    "text",
    "9" * 400,
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [None],
    {"a": []},
    ["text", -1],
    [[[[[[]]]]]],
)
CONFUSED = (
    ("annotations", "annotations.json", read_annotations),
    ("evaluation", "annotations.json", read_evaluated),
    ("evaluation", "detections.json", read_evaluated),
    ("run", "run/metrics.json", read_report),
    ("run", "run/environment.json", read_report),
    ("run", "run/log.jsonl", read_report),
    ("run", "run/detections.json", read_report),
    ("run", "run/options.yaml", read_report),
    ("run", "dataset/annotations.json", read_report),
    ("npy folders", "features.json", read_features),
    ("config", "config.yaml", read_config),
)


def confused_cases(count: int, seed: int) -> Iterator[Case]:
    """Good files of which one value, at a random place, is of another kind, gone, or under another name."""
    for number in range(count):
        random = np.random.default_rng([seed, 3, number])
        place, file, read = CONFUSED[random.integers(len(CONFUSED))]
        yield Case("values of another kind", f"{number}, {file}", place, _confuser(file, random), read, False)


def _confuser(file: str, random: np.random.Generator) -> Callable[[Path, Path], None]:
    def make(folder: Path, sentinel: Path) -> None:
        path, lines = folder / file, file.endswith(".jsonl")
        text = path.read_text()
        content = [json.loads(line) for line in text.splitlines()] if lines else yaml.safe_load(text)
        confused = _confused(copy.deepcopy(content), random)
        if file.endswith(".yaml"):
            path.write_text(yaml.safe_dump(confused))
        elif lines and isinstance(confused, list):
            path.write_text("".join(json.dumps(line) + "\n" for line in confused))
        else:
            path.write_text(json.dumps(confused))

    return make


def _confused(content: object, random: np.random.Generator) -> object:
    """The content with one change; deep in it, or near its top."""
    parents = list(_containers(content))
    parent = parents[random.integers(min(len(parents), 12) if random.random() < 0.5 else len(parents))]
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    key = keys[random.integers(len(keys))]
    what = random.random()
    if what < 0.15:
        del parent[key]
    elif what < 0.25 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif what < 0.25:
        parent.append(parent[key])
    else:
        parent[key] = OTHER_VALUES[random.integers(len(OTHER_VALUES))]
    return content


def _containers(content: object) -> Iterator[dict | list]:
    """Those that hold something, from the top down."""
    level = [content]
    while level:
        held = [part for part in level if isinstance(part, dict | list) and part]
        yield from held
        level = [child for part in held for child in (part.values() if isinstance(part, dict) else part)]
