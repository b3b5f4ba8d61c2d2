"""Detection files in JSON, CSV and Parquet: the readers of whole columns equal those of single rows."""

import csv
import io
import json
import math
from decimal import Decimal
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import eval.detection
from eval import detection_columns
from eval.detection_columns import COLUMNS
from eval.detection_formats import READERS, read_detections, write_detections
from eval.tables import Table, make_table
from utils.errors import InputError

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(["a", "b", "x:y", "3", "Ä"])
NUMBERS = st.floats(-1e6, 1e6) | st.floats(0, 1) | st.integers(-100, 100)
ODD = (
    st.sampled_from([None, True, "1.5", " 2", "1_0", "nan", "", "x", math.nan, math.inf, 10**400, 2**64, -0.0, [], {}])
    | NUMBERS.map(str)
    | st.floats()
)


MORE = [{}, {"snippet_rate": 2.5}, {"external_data": {"used": [True, "a: b"]}}]  # beside the results in JSON


@st.composite
def rows(draw, odd=0.0):
    """Rows (video, start, end, label, score); with `odd`, some fields are anything."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        row = [draw(NAMES), *sorted([draw(NUMBERS), draw(NUMBERS)]), draw(NAMES), draw(NUMBERS)]
        if odd and draw(st.floats(0, 1)) < odd:
            row[draw(st.integers(0, 4))] = draw(ODD | NAMES | st.integers(-9, 9))
        found.append(tuple(row))
    return found


def outcome(read, source):
    """Return what a reader makes of a file: all of the table, or the error."""
    try:
        table = read(source)
    except InputError as error:
        return str(error)
    columns = (table.video, table.label, table.start, table.end, table.score)
    numbers = [(str(column.dtype), column.tobytes()) for column in columns]
    return table.videos, table.classes, numbers, table.snippet_rate


def check_readers_agree(path, expect_columns=False):
    read_columns, read_rows = READERS[path.suffix]
    assert outcome(read_detections, path) == outcome(read_rows, path)
    if expect_columns:
        assert read_columns(path) is not None


def check_json_readers_agree(path, expect_columns=False):
    for part_bytes in (0, 50, 2**18):
        with mock.patch.object(detection_columns, "PART_BYTES", part_bytes):
            check_readers_agree(path, expect_columns)


def names_have(rows, characters):
    return any(set(characters) & set(str(name)) for video, _, _, label, _ in rows for name in (video, label))


def as_json(rows, **more):
    results = {}
    for video, start, end, label, score in rows:
        results.setdefault(video, []).append({"label": label, "score": score, "segment": [start, end]})
    return {"results": results, **more}


def write_csv(path, rows, quoting=csv.QUOTE_MINIMAL, newline="\n"):
    file = io.StringIO()
    csv.writer(file, quoting=quoting, lineterminator=newline).writerows([COLUMNS, *rows])
    path.write_text(file.getvalue(), encoding="utf-8", newline="")


def write_parquet(path, rows, **types):
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: pa.array(column, types.get(name)) for name, column in columns.items()}), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("detections")


@given(rows(), st.sampled_from(["", "\ufeff"]), st.booleans(), st.sampled_from(MORE), st.sampled_from([None, 1]))
@example([("a", 1, 2, 3, 3), ("a", -1e16, 1e-7, "3", 0.1), ("b", 1, 2, -7, 3)], "", True, {}, None)
def test_json_in_columns(folder, rows, mark, is_ascii, more, indent):
    path = folder / "a.json"
    text = json.dumps(as_json(rows, **more), ensure_ascii=is_ascii, indent=indent)
    path.write_text(mark + text, encoding="utf-8")
    check_json_readers_agree(path, expect_columns=not names_have(rows, "\0"))


@given(rows(odd=0.3), st.data())
@example([("a", 1, 2, "x", 3), ("a", 1, 2, "y", math.nan)], None)
def test_odd_json(folder, rows, data):
    """Rows of any content, and text that is damaged."""
    path = folder / "odd.json"
    content = as_json([(str(video), *row) for video, *row in rows])
    if data and data.draw(st.booleans()):
        video = data.draw(st.sampled_from(sorted(content["results"])))
        content["results"][video] = data.draw(ODD | st.just([[]]) | st.just([{"label": "x", "score": 1}]))
    if data and data.draw(st.booleans()):
        content["snippet_rate"] = data.draw(ODD)
    text = json.dumps(content)
    if data and data.draw(st.booleans()):
        old, new = data.draw(st.sampled_from(DAMAGE))
        text = text.replace(old, new, data.draw(st.integers(1, 3)))
    path.write_text(text)
    check_json_readers_agree(path)


DAMAGE = [
    ('"label"', '"score"'),
    ('"score"', '"label"'),
    ('"label": ', '"label": "first", "label": '),
    ('"label": ', '"l\\u0061bel": "a\\u003ab", "label": '),
    ('{"label"', '{"more": {"a": 1, "a": 2}, "label"'),
    ('"results": ', '"results": {}, "results": '),
    ("[", "[["),
    ("]", "]]"),
    ("]", ", 3]"),
    ("}", ""),
    ("1", "1" * 400),
    ("2", "02"),
    ('"', ""),
    ("}", "} x"),
    (":", ""),
    ("a", "\\ud800"),
    ("a", "\ufeff"),
    ("{", "\ufeff{"),
    ("[", "[" * 2000),
]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"\xef\xbb\xbf",
        b"null",
        b'{"results": []}',
        b'{"results": {"a": {}}}',
        b'{"results": {"a": ""}}',
        b'{"results": {"a": {}, "b": [{"label": "x", "score": 1, "segment": [0, 1]}]}}',
        b'{"results": {"a": [{"label": "x", "score": 1, "segment": [0, 1, 2]}],'
        b' "b": [{"label": "x", "score": 1, "segment": [3]}]}}',
        b'{"results": {"a": [], "b\\u0000": []}}',
        b'{"results": {"a": [{"label": "x", "score": 1, "segment": [0, 1]}]}, "version": 1, "version": 2}',
        b'{"results": {"a": [{"label": "a\\u003a", "score": 1, "segment": [0, 1], "score": 1}]}}',
        b'{"results": {"a": [{"label": 3, "score": 1, "segment": [0, 1]}],'
        b' "b": [{"label": "3", "score": 1, "segment": [0, 1]}]}}',
        b'{"results": {"a": [{"label": 1e2, "score": 1, "segment": [0, 1]}]}}',
        b'{"results": {"a": [{"label": true, "score": 1, "segment": [0, 1]}]}}',
        b'{"results": {"a": [{"label": 18446744073709551616, "score": 1, "segment": [0, 1]}]}}',
        b'{"results": {"a": [{"label": "x", "score": 18446744073709551616, "segment": {"0": 1, "1": 2}}]}}',
        b'{"results": {"a": [{"label": "x", "score": 1, "segment": "12"}]}}',
        b'{"results": {"a": [{"label": "x", "score": 123456789012345678901234567890, "segment": [0, 0.1]}]}}',
    ],
)
def test_json_at_the_edge(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    check_json_readers_agree(tmp_path / "a.json")


ENTRY = '{"label": "x", "score": 1, "segment": [0, 1]}'


@pytest.mark.parametrize(
    "content",
    [
        '{"results": {"a": [], "b": [], "c": []}}',
        '{"results": {"a": [ENTRY], "b": [ENTRY], "a": [ENTRY]}}',
        '{"version": 1, "results": {"a": [ENTRY], "b": [ENTRY]}, "version": 2}',
        '{"results": {"a": [ENTRY], "b": [ENTRY]}, "results": {"c": [ENTRY], "d": [ENTRY]}}',
        '{"results": {"a": [ENTRY]}, "more": {"b": [ENTRY], "c": [ENTRY]}}',
        '{"more": {"b": [ENTRY], "c": [ENTRY]}, "results": {"a": [ENTRY], "b": [ENTRY]}}',
        '{"more": [{}], "results": {"a": [ENTRY], "b": [ENTRY]}}',
        '{"more": {"results": {"a": [ENTRY], "b": [ENTRY]}}}',
        '{"results": {"a": [ENTRY],\f"b": [ENTRY]}}',
        '{"results": {"}], \\"": [ENTRY], "a}], ": [ENTRY], "b": [{"label": "}], ", "score": 1, "segment": [0, 1]}]}}',
        '{"results": {"a": [{"more": [{}], "label": "x", "score": 1, "segment": [0, 1]}], "b": [ENTRY]}}',
    ],
)
def test_json_is_cut_between_videos_only(tmp_path, content):
    (tmp_path / "a.json").write_text(content.replace("ENTRY", ENTRY))
    check_json_readers_agree(tmp_path / "a.json")


def test_a_deep_nest_of_brackets_is_one_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(as_json([("a", 1, 2, "x", 3)])).replace("3", "[" * 100_000))
    with pytest.raises(InputError, match="not valid JSON") as error:
        read_detections(path)
    assert "\n" not in str(error.value)


@given(rows(), st.sampled_from(["\n", "\r\n"]))
def test_csv_in_columns(folder, rows, newline):
    path = folder / "a.csv"
    write_csv(path, rows, newline=newline)
    check_readers_agree(path, expect_columns=not names_have(rows, '\0"\r\n,'))


@given(rows(odd=0.3), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.data())
def test_odd_csv(folder, rows, quoting, data):
    path = folder / "odd.csv"
    write_csv(path, rows, quoting)
    if data.draw(st.booleans()):
        changes = [("\n", "\n\n"), ("\n", ",\n"), (",", ";"), (",", ""), ("\n", ""), ("\n", "\r")]
        old, new = data.draw(st.sampled_from(changes))
        path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), data.draw(st.integers(1, 4))))
    check_readers_agree(path)


@pytest.mark.parametrize("header", [b"", b"\n", b"\xff\n", b"\xef\xbb\xbfvideo,start,end,class,conf,more\n"])
@pytest.mark.parametrize(
    "rows",
    [
        b"",
        b"a,1,2,x,3,\xff\n",
        b"a,1,2,x\n",
        b",1,2,,3,\n",
        b"a,1,2,x,0x1,\n",
        b"a\0,1,2,x,1,\n",
        b'"a"b,1,2,x,1,\n',
        b'a"b,1,2,x,1,\n',
        b'"a\nb",1,2,x,1,\n',
        b'"a""b",1,2,x,1,\nc,"1",2,x,1,\n',
    ],
)
def test_csv_at_the_edge(tmp_path, header, rows):
    (tmp_path / "a.csv").write_bytes(header + rows)
    check_readers_agree(tmp_path / "a.csv")


@given(rows(), st.sampled_from([pa.float64(), pa.float32()]), st.sampled_from([pa.string(), pa.large_string()]))
def test_parquet_in_columns(folder, rows, number, text):
    path = folder / "a.parquet"
    rows = [(video, float(start), float(end), label, float(score)) for video, start, end, label, score in rows]
    write_parquet(path, rows, **{"t-start": number, "t-end": number, "score": number, "label": text})
    check_readers_agree(path, expect_columns=not names_have(rows, "\0"))


ODD_COLUMNS = [
    ("video-id", pa.array([1, 2, 1])),
    ("video-id", pa.array(["a", None, "b"])),
    ("video-id", pa.array([b"a", b"\xff", b"b"])),
    ("label", pa.array([3, 3, 2], pa.uint8())),
    ("label", pa.array([True, False, True])),
    ("label", pa.array([1.0, 2.0, 3.0])),
    ("label", pa.array([["x"], ["y"], []])),
    ("label", pa.DictionaryArray.from_arrays(pa.array([2, 0, 2]), pa.array(["p", "unused", "q"]))),
    ("label", pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array([7, 8]))),
    ("t-start", pa.array([1, 2, 2])),
    ("t-start", pa.array([-1, 2**60 + 1, -2])),
    ("t-start", pa.array(["1", "2.5", "0"])),
    ("t-start", pa.array(["1", "soon", "0"])),
    ("t-start", pa.array([1.0, 9.0, 1.0])),
    ("score", pa.array([1.0, math.nan, math.inf])),
    ("score", pa.array([1.0, None, 2.0])),
    ("score", pa.array([1, 0, 1], pa.date32())),
    ("score", pa.array([0.5, 1, 2], pa.float16())),
    ("score", pa.array([Decimal("0.046675314082485333"), Decimal("123456789012345.678901"), Decimal("1")])),
]


@pytest.mark.parametrize(("name", "column"), ODD_COLUMNS, ids=str)
def test_odd_parquet(tmp_path, name, column):
    columns = {"video-id": ["a", "b", "a"], "t-start": [0.0, 1.0, 2.0], "t-end": [3.0] * 3, "label": ["x", "y", "x"]}
    for size in (1, 3):
        table = pa.table({**columns, "score": [0.1, 0.2, 0.3], name: column})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=size)
        check_readers_agree(tmp_path / "a.parquet")


def test_bad_parquet_files_are_refused_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write_parquet(path, [("a", 1.0, 2.0, "x", 0.5)] * 100)
    content = path.read_bytes()
    for damaged in (b"", b"PAR1", b"x" * 99, content[:-9], content[:4] + b"\xff" * 40 + content[44:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{path}: not a Parquet file") as error:
            read_detections(path)
        assert "\n" not in str(error.value)
    path.write_bytes(content)
    monkeypatch.setattr(detection_columns, "MAX_PARQUET_ROWS", 99)
    with pytest.raises(InputError, match="expected at most 99 rows, got 100"):
        read_detections(path)
    pq.write_table(pa.table({"video-id": ["a"], "t-start": [1.0]}), path)
    with pytest.raises(
        InputError, match="no column .*'t-end', 'label', 'score'.*; expected a header such as video-id,"
    ):
        read_detections(path)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (("a", 4.0, 3.0, "x", 1.0), "the segment [4.0, 3.0] ends before it starts"),
        (("a", 1.0, math.inf, "x", 1.0), "not finite: segment [1.0, inf], score 1.0"),
        (("a", 1.0, 2.0, "x", math.nan), "not finite: segment [1.0, 2.0], score nan"),
        (("a", "1.0", "soon", "x", "1.0"), "not numbers: segment ['1.0', 'soon'], score '1.0'"),
    ],
)
def test_a_bad_row_has_one_message_in_all_formats(tmp_path, bad, problem):
    good = tuple(map(str, ("a", 1.0, 2.0, "x", 1.0))) if "soon" in bad else ("a", 1.0, 2.0, "x", 1.0)
    rows = [good, good, bad, good]
    (tmp_path / "d.json").write_text(json.dumps(as_json(rows)))
    write_csv(tmp_path / "d.csv", rows)
    write_parquet(tmp_path / "d.parquet", rows)
    for name, place in (("d.json", "detection 2"), ("d.csv", "line 4"), ("d.parquet", "row 2")):
        with pytest.raises(InputError) as error:
            read_detections(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: video 'a', {place}: {problem}"


def test_all_formats_have_one_score(tmp_path, run_main):
    numbers = enumerate(np.random.default_rng(0).random((99, 2)).tolist())
    rows = [(f"v{i % 7}", start, start + 2, "xy"[i % 2], score) for i, (start, score) in numbers]
    segments = [{"label": "x", "segment": [0, 2]}, {"label": "y", "segment": [0.5, 3]}]
    database = {f"v{i}": {"subset": "test", "annotations": segments} for i in range(7)}
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    (tmp_path / "d.json").write_text(json.dumps(as_json(rows)))
    write_csv(tmp_path / "d.csv", rows)
    write_parquet(tmp_path / "d.parquet", rows)
    options = "--ground-truth", tmp_path / "truth.json", "--predictions"
    shown = [run_main(eval.detection.main, *options, tmp_path / f"d.{kind}") for kind in ("json", "csv", "parquet")]
    assert shown[0][0] == 0 and shown[0] == shown[1] == shown[2]


@given(rows(), st.sampled_from([None, 1.5625]))
def test_written_detections_read_back(folder, rows, rate):
    by_table = ((video, label, start, end, score) for video, start, end, label, score in rows)
    table = make_table(by_table, ["no detections", 'a "quoted" name'])
    write_detections(folder / "w.json", table, rate)
    content = json.loads((folder / "w.json").read_text())
    expected = {name: [] for name in table.videos}
    for video, start, end, label, score in rows:
        expected[video].append({"label": label, "score": float(score), "segment": [float(start), float(end)]})
    assert content["results"] == expected
    assert content.get("snippet_rate") == rate
    assert list(content) == ["version", "results", "external_data", *(["snippet_rate"] if rate else [])]


def test_numbers_that_json_lacks_are_not_written(tmp_path):
    table = Table(("a",), ("x",), *np.zeros((2, 1), dtype=int), *np.zeros((2, 1)), score=np.array([np.nan]))
    with pytest.raises(ValueError, match="not finite"):
        write_detections(tmp_path / "w.json", table)
    assert not list(tmp_path.iterdir())
