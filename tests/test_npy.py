"""Untrusted .npy files: NumPy's own files load as NumPy loads them, all others are refused without harm."""

import io
import os
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.torture.pickles import PICKLES, npy_of_objects
from utils.errors import InputError
from utils.formats import npy
from utils.formats.npy import array_shape, load_array, load_names, load_plain_array, load_plain_rows, npz_names

MEGABYTE = 2**20


def header(shape, descr="|O", version=(1, 0)) -> bytes:
    """Return the header of a .npy file, true or not."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text


def objects(*rows) -> np.ndarray:
    array = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        array[number] = row
    return array


def pickled(array, protocol=4) -> bytes:
    """Return an object-dtype .npy file, pickled by any protocol."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, np.lib.format.header_data_from_array_1_0(array))
    pickle.dump(array, content, protocol=protocol)
    return content.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def dtype(code: str, order="<", state: bytes | None = None) -> bytes:
    state = b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" if state is None else state
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R" + state


def array(shape: bytes, made_dtype: bytes, content: bytes) -> bytes:
    """Return the opcodes of an array."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return empty + b"(K\x01" + shape + made_dtype + b"\x89" + content + b"tb"


def holding(operations: bytes) -> bytes:
    """Return an object-dtype .npy file with one row, given by opcodes."""
    return header((1,)) + b"\x80\x04" + array(b"K\x01\x85", dtype("O8", "|"), b"]" + operations + b"a") + b"."


def bytes8(count: int) -> bytes:
    return b"\x8e" + struct.pack("<Q", count)


HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")  # the number 2**40
ONES = b"](" + b"K\x01" * 1000 + b"e"


def levels(count: int) -> bytes:
    """Return a list of 1000 references to a list of 1000 references, and so on: 5 KB for 1000**count values."""
    refer = b"".join(b"q%c](" % level + b"h%c" % level * 1000 + b"e" for level in range(count - 1))
    return ONES + refer


def repeated(function: bytes, arguments: bytes) -> bytes:
    """Return a list of 1000 results of one call; function and arguments come from the memo."""
    return b"](" + function + b"q\x05" + arguments + b"q\x06R" + b"h\x05h\x06R" * 1000 + b"e"


HOSTILE = {
    "a function of numpy": b"cnumpy\nsave\n" + text("ran") + b"K\x01\x86R",
    "an instance by NEWOBJ": b"cnumpy\nndarray\nK\x03\x85\x85\x81",
    "an instance by NEWOBJ_EX": b"cnumpy\nndarray\nK\x03\x85\x85}\x92",
    "a buffer from elsewhere": b"\x97",
    "a state for a function": b"c_codecs\nencode\nK\x01b",
    "a state for a list": b"]K\x01b",
    "a state for an array twice": array(b"K\x01\x85", dtype("i1"), b"C\x01a") + b"K\x01b",
    "attributes for a function": b"c_codecs\nencode\n}" + text("__code__") + b"Nsb",
    "a class among the values": b"cnumpy\nndarray\n",
    "a dtype among the values": dtype("f4"),
    "another codec": b"c_codecs\nencode\n" + text("abc") + text("zip") + b"\x86R",
    "a memo index": b"Nr\xff\xff\xff\x7f",
    "a memo index without a value": b"j\xff\xff\xff\x7f",
    "missing bytes": bytes8(2**40),
    "bytes past counting": bytes8(2**64 - 1),
    "a missing byte array": b"\x96" + struct.pack("<Q", 2**33),
    "missing text": b"\x8d" + struct.pack("<Q", 2**33),
    "a missing Python 2 string": b"T\xff\xff\xff\x7f",
    "a Python 2 string of negative length": b"T\xff\xff\xff\xff",
    "a missing long integer": b"\x8b\xff\xff\xff\x7f",
    "an integer of 5000 digits": b"\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000,
    "calls ten thousand deep": b"c_codecs\nencode\n" * 10_000 + b"N" + b"\x85R" * 10_000,
    "lists ten thousand deep": b"]" * 10_000 + b"a" * 9_999,
    "tuples ten thousand deep": b")" + b"\x85" * 10_000,
    "a list of itself": b"]q\x07h\x07a",
    "an array of itself": array(b"K\x01\x85", dtype("O8", "|") + b"q\x07", b"]q\x08h\x08a"),
    "shared lists": levels(4),
    "shared text": b"](" + text("a" * 10**5) + b"q\x07" + b"h\x07" * 1000 + b"e",
    "a shared array": b"]("
    + array(b"M\x10\x27\x85", dtype("i1"), b"B\x10\x27\x00\x00" + bytes(10**4))
    + b"q\x07"
    + b"h\x07" * 1000
    + b"e",
    "text encoded many times": repeated(b"c_codecs\nencode\n", text("a" * 10**5) + text("latin1") + b"\x86"),
    "a scalar of shared bytes": repeated(
        b"cnumpy.core.multiarray\nscalar\n",
        dtype("S100000") + b"B" + struct.pack("<i", 10**5) + bytes(10**5) + b"\x86",
    ),
    "numbers for keys": b"}(" + b"K\x01NK\x02Nu",
    "a list for a key": b"}]Ns",
    "numpy.ndarray called": b"cnumpy\nndarray\n" + HUGE + b"\x85\x85R",
    "a shape without its bytes": array(HUGE + b"\x85", dtype("f4"), b"C\x04abcd"),
    "a shape that overflows": array(HUGE + HUGE + HUGE + b"\x87", dtype("f4"), b"C\x04abcd"),
    "a negative shape": array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", dtype("i1"), b"C\x01a"),
    "an empty array of a size": array(b"K\x00" + HUGE + b"\x86", dtype("f4"), b"C\x00"),
    "text of no size": array(HUGE + b"\x85", dtype("U0"), b"C\x00"),
    "65 dimensions": array(b"(" + b"K\x01" * 65 + b"t", dtype("i1"), b"C\x01a"),
    "a shape of floats": array(b"G" + struct.pack(">d", 4) + b"\x85", dtype("i1"), b"C\x04abcd"),
    "objects without a list": array(HUGE + b"\x85", dtype("O8", "|"), b"]Na"),
    "objects from bytes": array(b"K\x01\x85", dtype("O8", "|"), b"C\x08abcdefgh"),
    "numbers from objects": array(b"K\x01\x85", dtype("f8"), b"]Na"),
    "an object from its address": b"cnumpy.core.multiarray\nscalar\n" + dtype("O8", "|") + b"C\x08abcdefgh\x86R",
    "objects from a buffer": b"cnumpy.core.numeric\n_frombuffer\n(C\x08abcdefgh"
    + dtype("O8", "|")
    + b"K\x01\x85"
    + text("C")
    + b"tR",
    "a buffer that is too short": b"cnumpy.core.numeric\n_frombuffer\n(C\x01a"
    + dtype("f4")
    + HUGE
    + b"\x85"
    + text("C")
    + b"tR",
    "a scalar that is too short": b"cnumpy.core.multiarray\nscalar\n" + dtype("S999999999") + b"C\x01a\x86R",
    "an array filled twice": array(b"K\x01\x85", dtype("i1"), b"C\x01a")
    + b"(K\x01K\x01\x85"
    + dtype("i1")
    + b"\x89C\x01atb",
    "records": array(b"K\x01\x85", dtype("V8"), b"C\x08abcdefgh"),
    "a dtype of two numbers": array(b"K\x01\x85", dtype("f4,f4"), b"C\x08abcdefgh"),
    "a dtype from a number": b"cnumpy\ndtype\nK\x07\x89\x88\x87R",
    "dates": array(b"K\x01\x85", dtype("M8"), b"C\x08abcdefgh"),
    "a dtype with metadata": array(
        b"K\x01\x85",
        dtype("f4", state=b"(K\x04" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}tb"),
        b"C\x04abcd",
    ),
    "a dtype with fields": array(
        b"K\x01\x85",
        dtype("f4", state=b"(K\x03" + text("<") + b"N" + text("x") + b"\x85}K\x04K\x01K\x00tb"),
        b"C\x04abcd",
    ),
    "a dtype with a dict as state": dtype("f4", state=b"}b"),
    "an unknown byte order": dtype("f4", order="what"),
    "invalid characters": array(b"K\x01\x85", dtype("U1"), b"C\x04\xff\xff\xff\xff"),
    "an invalid character": b"cnumpy.core.multiarray\nscalar\n" + dtype("U1") + b"C\x04\xff\xff\xff\xff\x86R",
    "no mark": b"t",
    "an empty stack": b"0",
    "an unknown opcode": b"\xff",
}


def refused(path, content: bytes) -> str:
    """Return the one-line message of a refused file; no file is created and little memory is used."""
    path.write_bytes(content)
    before = sorted(os.listdir(path.parent))
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            load_array(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sorted(os.listdir(path.parent)) == before
    assert peak < 4 * MEGABYTE + 100 * len(content)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("operations", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickle_is_refused(tmp_path, monkeypatch, operations):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "a.npy", holding(operations))


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_no_code_runs(tmp_path, make):
    """As a whole file and inside an array, a pickle that would create a folder creates none."""
    content = make(str(tmp_path / "sentinel"))
    refused(tmp_path / "a.npy", npy_of_objects(content))
    refused(tmp_path / "a.npy", holding(content[2 * content.startswith(b"\x80") : -1]))


def test_values_around_the_hostile_ones_load(tmp_path):
    """Otherwise the hostile pickles could be refused for another reason."""
    made = array(b"K\x02\x85", dtype("f4", ">"), b"C\x08" + struct.pack(">ff", 1, 2))
    (tmp_path / "a.npy").write_bytes(holding(b"](" + made + text("word") + ONES + b"e"))
    ((numbers, word, ones),) = load_array(tmp_path / "a.npy")
    assert (numbers.tolist(), word, ones) == ([1, 2], "word", [1] * 1000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a function of numpy", "it names 'numpy', 'save', which no array needs"),
        ("a buffer from elsewhere", "opcode NEXT_BUFFER is not supported"),
        ("a list of itself", "nested deeper than 8 levels"),
        ("shared text", "repeated parts add up to more than 4,194,304 bytes"),
        ("text encoded many times", "repeated parts add up to more than 4,194,304 bytes"),
        ("a scalar of shared bytes", "repeated parts add up to more than 4,194,304 bytes"),
        ("a shape without its bytes", "shape (1099511627776,) and 4,398,046,511,104 bytes, got 4"),
        ("a memo index", "memo index 2,147,483,647 is larger"),
    ],
)
def test_refusal_gives_the_reason(tmp_path, name, message):
    assert message in refused(tmp_path / "a.npy", holding(HOSTILE[name]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .npy file"),
        (b"\x93NUMPY", "not a .npy file"),
        (b"PK\x03\x04" + bytes(99), "not a .npy file"),
        (header((4,), "<f4", version=(4, 0)) + bytes(16), "version (1, 0) to (3, 0), got (4, 0)"),
        (header((4,), "<f4") + bytes(15), "declares 16 bytes, got 15"),
        (header((4,), "<f4") + bytes(17), "declares 16 bytes, got 17"),
        (header((2**40,), "<f4"), "declares 4,398,046,511,104 bytes, got 0"),
        (header((2**40, 2**40, 2**40), "<f4"), "bytes, got 0"),
        (header((2**40,), "|O") + b"N.", "declares"),
        (header((-1, -1), "|i1") + b"a", "no array has"),
        (header((0, 2**40), "<f4"), "no array has"),
        (header((1,) * 65, "|i1") + b"a", "no array has"),
        (header((True,), "|i1") + b"a", "expected a shape of integers"),
        (header((2**40,), "|S0"), "declares"),
        (header((1,), "<M8[s]") + bytes(8), "got dtype"),
        (header((1,), "<c8") + bytes(8), "got dtype"),
        (header((1,), "|V8") + bytes(8), "got dtype"),
        (header((1,), [("x", "<f4")]) + bytes(4), "got dtype"),
        (header((1,), [("x", "|O")]) + b"N.", "got dtype"),
        (header((1,), ("<f4", (2, 2))) + bytes(16), "got dtype"),
        (header((1,), "<U1") + b"\xff" * 4, "invalid characters"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "not a .npy file"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**5) + b" " * 10**5, "not a .npy file"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 8000) + b"[" * 8000, "not a .npy file"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9) + b"{1if 0: 1", "not a .npy file"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9) + b"{[]: 1}  ", "not a .npy file"),
        (holding(b"N") + b".", "bytes after the array"),
        (holding(b"N")[:-1], "not a .npy file"),
        (header((2,)) + holding(b"N").split(b"\n", 1)[1], "declares objects of shape (2,)"),
        (header((1,)) + b"\x80\x04]Na.", "the content differs"),
        (header((1,)) + b"\x80\x04NN.", "not a .npy file"),
        (header((1,)) + b"\x80\x04.", "not a .npy file"),
    ],
)
def test_damaged_or_unsupported_file_is_refused(tmp_path, content, message):
    assert message in refused(tmp_path / "a.npy", content)


def test_too_many_opcodes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "MAX_OPCODES", 500)
    assert "more than 500 pickle opcodes" in refused(tmp_path / "a.npy", holding(b"N" * 500))


def test_shape_is_checked_against_the_size(tmp_path):
    (tmp_path / "a.npy").write_bytes(header((2**40, 1024), "<f4") + bytes(64))
    with pytest.raises(InputError, match="bytes, got 64"):
        array_shape(tmp_path / "a.npy")


def test_path_that_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")  # opening it would wait for a writer
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    for name in ("pipe", "folder", "loop", "absent", "a\0b"):
        for read in (load_array, load_plain_array, array_shape):
            with pytest.raises(InputError):
                read(tmp_path / f"{name}.npy")


def test_plain_reader_refuses_object_dtype(tmp_path):
    np.save(tmp_path / "a.npy", objects([1]))
    for read in (load_plain_array, lambda path: load_plain_rows(path, np.array([0]))):
        with pytest.raises(InputError, match="object dtype; expected numbers"):
            read(tmp_path / "a.npy")


def test_rows_are_read_without_pread(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(os, "pread")
    values = np.arange(4000, dtype=np.float32).reshape(-1, 4)
    np.save(tmp_path / "a.npy", values)
    rows = np.array([0, 7, 7, 999])
    np.testing.assert_array_equal(load_plain_rows(tmp_path / "a.npy", rows), values[rows])


def test_message_shows_a_long_number(tmp_path):
    (tmp_path / "a.npy").write_bytes(holding(b"\x8a\xff" + b"\x7f" * 255))
    with pytest.raises(InputError, match="row 0: expected a name, got 62871626"):
        load_names(tmp_path / "a.npy")


def same(first, second) -> bool:
    """Compare type, dtype, shape and content at every level."""
    if isinstance(first, np.ndarray):
        alike = isinstance(second, np.ndarray) and (first.dtype, first.shape) == (second.dtype, second.shape)
        if not alike or not first.dtype.hasobject:
            return alike and first.tobytes() == second.tobytes()
        return same(list(first.flat), list(second.flat))
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return same(list(first.items()), list(second.items()))
    return first == second or first != first


PLAIN = st.sampled_from(["b1", "i1", "<u2", ">i4", "<f2", "<f4", ">f8", "S3", "<U2", ">U2"])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = PLAIN.flatmap(lambda code: hnp.arrays(np.dtype(code), SHAPES)) | SHAPES.map(
    lambda shape: np.arange(np.prod(shape, dtype=int), dtype="f4").reshape(shape).T
)
VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3)
VALUES |= st.binary(max_size=3) | ARRAYS | ARRAYS.filter(np.size).map(lambda made: made.flat[0])
NESTED = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=3).map(lambda rows: objects(*rows))
    ),
    max_leaves=6,
)


@given(rows=st.lists(NESTED, max_size=4), protocol=st.integers(2, 5))
def test_object_arrays_load_as_in_numpy(tmp_path_factory, rows, protocol):
    path = tmp_path_factory.getbasetemp() / "rows.npy"
    for content in (pickled(objects(*rows), protocol), pickled(objects(*rows, rows), protocol)):
        path.write_bytes(content)
        expected = np.load(path, allow_pickle=True)
        assert same(load_array(path), expected)
        old = content.replace(b"numpy._core", b"numpy.core") if protocol < 4 else content  # as numpy 1 named it
        path.write_bytes(old)
        assert same(load_array(path), expected)


@given(made=ARRAYS)
def test_plain_arrays_load_as_in_numpy(tmp_path_factory, made):
    path = tmp_path_factory.getbasetemp() / "plain.npy"
    np.save(path, made)
    for read in (load_array, load_plain_array):
        assert same(read(path), np.load(path))
    assert array_shape(path) == made.shape


def test_release_loads_as_in_numpy(reference):
    files = sorted((reference / "data" / "thumos14" / "Thumos14reduced-Annotations").glob("*.npy"))
    assert len(files) == 9
    for path in files:
        expected = np.load(path, allow_pickle=True, encoding="bytes")
        assert same(load_array(path), expected)
        assert array_shape(path) == expected.shape


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_joint_file_needs_the_memory_of_its_content(tmp_path, protocol):
    rows = objects(*(np.full((2**10, 2**10), number, dtype=np.float32) for number in range(4)))
    (tmp_path / "a.npy").write_bytes(pickled(rows, protocol))
    tracemalloc.start()
    loaded = load_array(tmp_path / "a.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row[0, 0] for row in loaded] == [0, 1, 2, 3]
    assert peak < 16 * MEGABYTE * (2.5 if protocol == 2 else 1.5)


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Return a file with some bytes changed, or truncated."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_damaged_file_loads_or_is_refused(tmp_path, protocol):
    rows = objects(
        np.eye(3, dtype=np.float32), [b"Dive", "Clap"], np.array(["a", "bc"]), np.float64(1), ("a", [1, 2.5])
    )
    np.save(tmp_path / "a.npy", np.eye(4, dtype=np.float16))
    whole = pickled(rows, protocol) if protocol else (tmp_path / "a.npy").read_bytes()
    rng = random.Random(protocol)
    outcomes = set()
    for _ in range(400):
        (tmp_path / "a.npy").write_bytes(damaged(whole, rng))
        try:
            array_shape(tmp_path / "a.npy")
            outcomes.add(type(load_array(tmp_path / "a.npy")))
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.add(InputError)
    assert outcomes == {np.ndarray, InputError}


def member_file(path, content: bytes, **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("arr_0.npy", content)


def npy_bytes(values) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "values", [np.eye(5, 3), np.zeros((0, 4), "f2"), np.asfortranarray(np.arange(6.0).reshape(2, 3))]
)
def test_npz_members_are_read(tmp_path, save, values):
    save(tmp_path / "x.npz", values, flow=values + 1)
    path = tmp_path / "x.npz"
    assert sorted(npz_names(path)) == ["arr_0", "flow"]
    assert array_shape(path, "flow") == values.shape
    np.testing.assert_array_equal(load_plain_array(path, "flow"), values + 1)
    rows = np.arange(len(values)).repeat(2)
    np.testing.assert_array_equal(load_plain_rows(path, rows, "arr_0"), values[rows])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: member_file(path, npy_bytes(np.zeros(2**25)), compression=zipfile.ZIP_DEFLATED), "packed into"),
        (lambda path: member_file(path, npy_bytes(np.zeros(9)), compression=zipfile.ZIP_LZMA), "is not supported"),
        (lambda path: member_file(path, npy_bytes(np.zeros(9))[:-8]), "is the file complete"),
        (lambda path: member_file(path, npy_bytes(np.array([None]))), "object dtype; expected numbers"),
        (lambda path: member_file(path, b"text"), "not a .npz file"),
        (lambda path: path.write_bytes(npy_bytes(np.zeros(9))), "not a .npz file"),
    ],
)
def test_a_hostile_npz_takes_no_memory(tmp_path, write, message):
    write(tmp_path / "x.npz")
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        load_plain_array(tmp_path / "x.npz", "arr_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_damaged_npz_is_read_or_refused(tmp_path):
    values, path, outcomes = np.random.default_rng(0).random((40, 4)), tmp_path / "x.npz", set()
    np.savez_compressed(path, values)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.15 else content)
        try:
            outcomes.add(load_plain_array(path, npz_names(path)[0]).shape)
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.add(InputError)
    assert InputError in outcomes and (40, 4) in outcomes
