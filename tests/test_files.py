"""Files are written completely or not at all, and read within bounds and against their checksums."""

import os

import pytest

from utils.errors import InputError, shorten
from utils.formats.checksums import SUMS, format_checksums, sha256_of, verify_checksum
from utils.formats.files import (
    atomic_write,
    file_name,
    read_json,
    read_json_lines,
    read_yaml,
    sweep_partial,
    write_json,
    write_text,
)


def test_error_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as partial:
        partial.write_text("half of the n")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_failed_write_is_reported_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"/gone/a.json: cannot be written \(No such file"):
        write_json(tmp_path / "gone/a.json", {})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": float("nan")})
    assert os.listdir(tmp_path) == []


def test_temporary_file_of_a_killed_process_is_removed(tmp_path):
    (tmp_path / "last.pt.partial-123").write_bytes(b"half")
    (tmp_path / "last.pt").write_bytes(b"whole")
    sweep_partial(tmp_path)
    assert os.listdir(tmp_path) == ["last.pt"]


def test_changed_file_differs_from_its_checksum(tmp_path):
    write_json(tmp_path / "metrics.json", {"map": 0.5})
    (tmp_path / SUMS).write_text(format_checksums(tmp_path, ["metrics.json"]))
    assert read_json(tmp_path / "metrics.json") == {"map": 0.5}
    (tmp_path / "metrics.json").write_text('{"map": 0.7}\n')
    for check in (read_json, verify_checksum):
        with pytest.raises(InputError, match="differs from the checksum in SHA256SUMS"):
            check(tmp_path / "metrics.json")
    (tmp_path / "notes.json").write_text("{}")
    assert read_json(tmp_path / "notes.json") == {}  # not in SHA256SUMS


def test_config_is_not_checked_unless_asked(tmp_path):
    (tmp_path / "options.yaml").write_text("lr: 1")
    (tmp_path / SUMS).write_text(format_checksums(tmp_path, ["options.yaml"]))
    (tmp_path / "options.yaml").write_text("lr: 2")
    assert read_yaml(tmp_path / "options.yaml") == {"lr": 2}
    with pytest.raises(InputError, match="differs from the checksum in SHA256SUMS"):
        read_yaml(tmp_path / "options.yaml", verify=True)


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("text", ["no sum", "ab  name\n", "e3" * 32 + "  ../outside\n", "e3" * 32 + " name\n"])
def test_damaged_checksums_are_refused(tmp_path, text):
    (tmp_path / SUMS).write_text(text)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match="SHA256SUMS: damaged"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [*b]", "has a YAML alias"),
        ("a: &x [1]\nb: *x", "has a YAML alias"),
        ("a: !!python/object/apply:os.system ['touch run']", "not a YAML file of plain values"),
        ("a: !!python/name:os.system", "not a YAML file of plain values"),
        ("[" * 1001, "has more than 1000 brackets"),
        ("[" * 1000, "not a YAML file of plain values"),
        ("- " * 5_000 + "1", "not a YAML file of plain values"),
        ("a: " + "x" * 2**16, "expected at most 65,536 bytes"),
        ("d: 2001-99-99", "not a YAML file of plain values"),
    ],
)
def test_untrusted_yaml(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_untrusted_json(tmp_path):
    for text in (
        "[" * 100_000 + "]" * 100_000,
        '{"a": ' * 5_000,
        "1" * 5_000,
        '{"a": 1, "a": 2}',
        "{",
        "\ud800x",
        r'{"a\ud800": 1}',
    ):
        (tmp_path / "a.json").write_text(text, errors="surrogatepass")
        with pytest.raises(InputError, match="a.json: "):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(r'["\ud83d\ude00"]')
    assert read_json(tmp_path / "a.json") == ["\U0001f600"]
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b"')
    with pytest.raises(InputError, match="not one JSON value per line"):
        read_json_lines(tmp_path / "a.jsonl")


def test_shortened_value_stays_short():
    bomb = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]  # its plain repr would have 2^60 letters
    assert len(shorten(bomb)) <= 80
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shorten(deep)) <= 80
    assert shorten("a" * 1000).startswith("'aaa")
    assert shorten([0, "b"]) == "[0, 'b']"


def test_file_names_differ_for_different_texts():
    texts = ["a/b", "a%2Fb", "a:b", "a b", "ä", "a\n"]
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts) and names[3:5] == texts[3:5] and all("/" not in name for name in names)
