"""Small files that ask for much: each is refused in a sentence, within the time and memory that `budget` allows.

Random mutation (tests/fuzz) finds none of them, so they are made by hand.
"""

import json
import struct
import time
import tracemalloc

import numpy as np
import pytest
from torch_files import TINY, make_weights, pickle_bytes, write_legacy, write_zip

from haksnet_jax.weights import budget, safetensors_reader
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.torch_reader import read_checkpoint


def text(value):
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def storage(count, kind=b"ctorch\nFloatStorage\n", key=b"X\x01\x00\x00\x000"):
    return b"(" + text("storage") + kind + key + text("cpu") + count + b"tQ"


DOUBLING = b")q\x00" + b"0h\x00h\x00\x86q\x00" * 60  # 400 bytes, 2^60 when written out
DEEP = b")" + b"\x85" * 200_000
MANY = b"(" + b"N" * 100_000 + b"l\x85q\x01"  # a list of 100,000 as the arguments of a call
LONG_TEXT = text("x" * 1_000_000) + b"q\x01"
NAMESPACE = b"cargparse\nNamespace\nq\x00"
STATE = b"}(" + b"".join(text(str(i)) + b"N" for i in range(20_000)) + b"uq\x01"

PICKLES = {
    "size that doubles": b"ctorch\nSize\n(" + DOUBLING + b"t\x85R",
    "count that doubles": storage(DOUBLING),
    "key that doubles": storage(b"K\x01", key=DOUBLING),
    "kind that doubles": storage(b"K\x01", kind=DOUBLING),
    "count nested deeply": storage(DEEP),
    "size nested deeply": b"ctorch\nSize\n(" + DEEP + b"t\x85R",
    "encoding that doubles": b"c_codecs\nencode\n" + text("a") + DOUBLING + b"\x86R",
    "dtype that doubles": b"cnumpy\ndtype\n" + DOUBLING + b"\x85R",
    "function that doubles": DOUBLING + b")R",
    "attributes of what doubles": DOUBLING + b"}b",
    "entries of what doubles": DOUBLING + b"K\x01K\x01s",
    "lists copied": b"c__builtin__\nlist\nq\x00" + MANY + b"00(" + b"h\x00h\x01R0" * 250_000 + b"t",
    "tuples copied": b"c__builtin__\ntuple\nq\x00" + MANY + b"00(" + b"h\x00h\x01R" * 250_000 + b"t",
    "sets copied": b"c__builtin__\nset\nq\x00" + MANY + b"00(" + b"h\x00h\x01R0" * 250_000 + b"t",
    "attributes copied": NAMESPACE + STATE + b"00" + b"h\x00)Rh\x01b0" * 100_000 + b"N",
    "dictionaries copied": b"ccollections\nOrderedDict\nq\x00" + STATE + b"\x85q\x02" + b"h\x00h\x02R0" * 100_000,
    "text encoded again and again": b"c_codecs\nencode\nq\x00"
    + LONG_TEXT
    + text("latin1")
    + b"\x86q\x02"
    + b"0h\x00h\x02R" * 100_000,
    "many arguments handed on": b"ctorch._utils\n_rebuild_tensor_v2\nq\x00("
    + b"N" * 100_000
    + b"tq\x01"
    + b"0h\x00h\x01R" * 100_000,
    "long names": LONG_TEXT + b"q\x01" + b"h\x01h\x01\x93)R0" * 10_000,
    "long names of calls": LONG_TEXT + text("a") + b"\x93",
    "text of four bytes a letter": b"X" + struct.pack("<I", 30_000_004) + "\U0001f600".encode() + b"a" * 30_000_000,
    "marks": b"(" * 900_000 + b"N",
    "empty sets": b"\x8f" * 900_000,
    "memo": b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(800_000)),
    "lists in a tuple": b"(" + b"]" * 900_000 + b"t",
    "tensors": b"(" + b"cnumpy.core.multiarray\n_reconstruct\nq\x00)R" + b"h\x00)R" * 300_000 + b"t",
    "objects": b"(cx\ny\nq\x00" + b"h\x00)R" * 300_000 + b"t",
    "other objects": b"(" + b"".join(b"cx\ny%d\n)R" % i for i in range(200_000)) + b"t",
}


def refused_cheaply(path, seconds=2 * budget.MAX_SECONDS):
    """Asserts a sentence within the limits. Returns: the message."""
    tracemalloc.start()
    started = time.thread_time()  # as the budget counts: a busy machine is slow
    try:
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.thread_time() - started < seconds  # (a look at the clock comes every 1,024 operations)
    # The budget, and the text of names and the JSON of a header once more.
    assert peak < 2 * budget.MAX_METADATA_BYTES, f"{peak >> 10} KiB"
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.fixture(params=[4 << 20, pytest.param(budget.MAX_METADATA_BYTES, marks=pytest.mark.slow)])
def limit(request, monkeypatch):
    """Budgets: a small one, which the bombs reach sooner, and the real one."""
    monkeypatch.setattr(budget, "MAX_METADATA_BYTES", request.param)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_asks_for_much_is_refused_cheaply(name, limit, tmp_path):
    program = b"\x80\x02" + PICKLES[name] + b"."
    refused_cheaply(write_zip(tmp_path / "a.pth", program))


def test_a_detector_with_the_state_of_its_optimizer_needs_half_of_the_budget(tmp_path, monkeypatch):
    weights = make_weights(TINY)
    names = [f"{name}.{copy}" for name in weights for copy in range(5)]  # about as many as HAKSNet-S has
    values = dict.fromkeys(names, np.zeros(1, np.float32))
    state = {index: {"step": 1, "exp_avg": np.zeros(1), "exp_avg_sq": np.zeros(1)} for index in range(len(names))}
    path = write_zip(tmp_path / "a.pth", {"state_dict": values, "optimizer": {"state": state}})
    monkeypatch.setattr(budget, "MAX_METADATA_BYTES", budget.MAX_METADATA_BYTES // 2)
    assert len(read_checkpoint(path).tree["state_dict"]) == len(names) > 1300


def test_the_older_form_has_one_budget_for_all_its_pickles(tmp_path):
    path = write_legacy(tmp_path / "a.pth", {})
    head = path.read_bytes()[: -len(pickle_bytes({})) - len(pickle_bytes([]))]
    path.write_bytes(head + b"\x80\x02" + PICKLES["lists copied"] + b".")
    refused_cheaply(path)
    path.write_bytes(head.replace(b"\x8a\x02\xe9\x03", DOUBLING))  # the version
    assert "of version a tuple of 2 of" in refused_cheaply(path)


def test_time_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.0)
    path = write_zip(tmp_path / "a.pth", b"\x80\x02" + b"N0" * 5_000 + b"N.")
    assert "takes more than 0 s" in refused_cheaply(path, seconds=5)


def safetensors(path, header, size=4):
    """Writes a file. Args: header, JSON or what becomes it."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(size))
    return path


def one(dtype="F32", shape=(1,), place=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": one(dtype=["F32"])}, "the dtype of tensor 'a' is a list of 1"),
        ({"a": one(dtype={})}, "the dtype of tensor 'a' is a dict of 0"),
        ({"a": one(dtype=None)}, "the dtype of tensor 'a' is None"),
        ({"a": one(dtype="F32\x1b[2J" + "x" * 100)}, "is a str of length"),
        ({"a": one(dtype="F8_E4M3", place=(0, 1 << 40))}, "in the file's 4 bytes"),
        ({"a": one(shape=(True,))}, "expected a whole number"),
        ({"a": {**one(), "shape": [1.0]}}, "expected a whole number"),
        ({"a": {**one(), "shape": {"0": 1}}}, "not a short list"),
        ({"a": {**one(), "data_offsets": [0]}}, r"needs 4 bytes"),
        ({"a": {**one(), "more": 1}}, "not described"),
        ({"a": one(), "b": one()}, "tensor 'b' overlaps tensor 'a'"),
        ({"a": one(), "b": one("U8", (2,), (3, 5))}, "overlaps|in the file"),
        ({"a": one("U8", (1,), (3, 4))}, "no tensor has the 3 bytes of data before tensor 'a'"),
        ({"a": one("U8", (1,), (0, 1))}, "no tensor has the last 3 bytes"),
        (b'{"a": ' + json.dumps(one()).encode() + b', "a": ' + json.dumps(one()).encode() + b"}", "'a' twice"),
        ({"__metadata__": {"format": ["pt"]}}, "metadata"),
        ({"__metadata__": "pt"}, "metadata"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"\xff": 1}', "not UTF-8"),
    ],
)
def test_a_safetensors_header_that_is_not_one_is_refused(header, words, tmp_path):
    message = refused_cheaply(safetensors(tmp_path / "a.safetensors", header))
    assert any(word in message for word in words.split("|")), message
    assert message.isprintable()


def test_products_of_a_safetensors_header_do_not_wrap_around(tmp_path):
    # 2^64 bytes, which are 0 in 64 bits.
    refused_cheaply(safetensors(tmp_path / "a.safetensors", {"a": one("F32", (1 << 31, 1 << 31), (0, 0))}, 0))


def test_an_empty_array_whose_other_sizes_are_beyond_any_memory_is_a_sentence(tmp_path):
    path = safetensors(tmp_path / "a.safetensors", {"a": one("F32", (1 << 61, 0, 9), (0, 0))}, 0)
    with pytest.raises(CheckpointError, match="sizes"):
        read_checkpoint(path).tree["a"].numpy()


@pytest.mark.parametrize(
    "part",
    [b'"%d":{}', b'"%d":[[],[],[],[]]', b'"%d":{"a":{}}', b'"\\u%04x\\ud83d\\ude00":1'],
)
def test_a_safetensors_header_of_many_small_things_is_refused_cheaply(part, limit, tmp_path, monkeypatch):
    # (the limit of the header has the same ratio to the budget)
    monkeypatch.setattr(safetensors_reader, "MAX_HEADER_BYTES", budget.MAX_METADATA_BYTES // 32)
    parts, size = [], 0
    while size < safetensors_reader.MAX_HEADER_BYTES - 100:
        parts.append(part % (len(parts) % 0xD000))
        size += len(parts[-1]) + 1
    refused_cheaply(safetensors(tmp_path / "a.safetensors", b"{" + b",".join(parts) + b"}"))
