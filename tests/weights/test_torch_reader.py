"""The reader of `.pth` and `.safetensors` files: right values, and nothing hostile gets through."""

import ast
import io
import itertools
import json
import os
import pathlib
import pickle
import random
import struct
import tracemalloc
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
from torch_files import Call, Global, Persistent, Raw, pickle_bytes, storage, tensor, write_legacy, write_zip

from haksnet_jax.weights import (
    budget,
    safetensors_reader,
    stored_tensors,
    torch_legacy,
    torch_objects,
    torch_pickle,
    torch_reader,
    torch_zip,
)
from haksnet_jax.weights.errors import CheckpointError
from haksnet_jax.weights.stored_tensors import Inert, StoredTensor
from haksnet_jax.weights.torch_reader import read_checkpoint

FILES = [
    "tiny_mmrotate.pth",
    "tiny_pretrain.pth.tar",
    "tiny_legacy.pth",
    "tiny_module_prefix.pth",
    "tiny_backbone_half.pth",
]
VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def refused(path, *words, **options):
    """Asserts that a file is refused in one sentence with certain words, and without much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert word in message, message
    # 20 times the largest of the hostile files below; a hundredth of what they ask for.
    assert peak < 64 << 20
    return message


def tree_of(path):
    return read_checkpoint(path).tree


# ------------------------------------------------------------------------------------------------------ right values


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_the_recorded_files_has_the_recorded_digest(name, golden_file, golden):
    expected = golden("checkpoints_expected").manifest["files"][name]
    tree = tree_of(golden_file(name))
    for part in ("state_dict", "state_dict_ema"):
        if part in expected:
            weights = tree.get(part, tree)
            assert list(weights) == list(expected[part])
            for key, digest in expected[part].items():
                array = weights[key].numpy()
                assert str(array.dtype) == digest["dtype"]
                assert zlib.crc32(array.tobytes()) == digest["crc32"], key


def test_plain_data_beside_the_weights_are_read(golden_file, golden):
    expected = golden("checkpoints_expected").manifest["files"]
    pretrained = tree_of(golden_file("tiny_pretrain.pth.tar"))
    assert pretrained["args"].name == "argparse.Namespace"
    assert pretrained["args"].attributes == expected["tiny_pretrain.pth.tar"]["args"]
    detector = tree_of(golden_file("tiny_mmrotate.pth"))
    assert list(detector["meta"]) == expected["tiny_mmrotate.pth"]["meta_keys"]
    assert detector["meta"]["epoch"] == 12 and detector["meta"]["iter"] == 8400


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("dtype", [*stored_tensors.DTYPES])
def test_every_dtype_comes_back(tmp_path, write, dtype):
    array = (np.arange(-6, 6).reshape(3, 4) % 7).astype(stored_tensors.DTYPES[dtype])
    back = tree_of(write(tmp_path / "a.pth", {"x": array}))["x"].numpy()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_offsets_and_transposed_strides_are_followed(tmp_path, write):
    view = (None,) if write is write_legacy else ()
    raw = VALUES.tobytes() if write is write_zip else (VALUES.tobytes(), 24)
    tree = {
        "transposed": tensor("float32", "7", 24, (4, 6), (1, 4), 0, *view),
        "offset": tensor("float32", "7", 24, (3,), (2,), 19, *view),
        "scalar": tensor("float32", "7", 24, (), (), 5, *view),
        "empty": tensor("float32", "7", 24, (0, 3), (3, 1), 24, *view),
    }
    back = tree_of(write(tmp_path / "a.pth", tree, {"7": raw}))
    flat = VALUES.reshape(-1)
    np.testing.assert_array_equal(back["transposed"].numpy(), flat.reshape(6, 4).T)
    np.testing.assert_array_equal(back["offset"].numpy(), flat[[19, 21, 23]])
    assert back["scalar"].numpy() == 5 and back["scalar"].shape == ()
    assert back["empty"].numpy().shape == (0, 3)


def test_views_of_the_older_form_begin_at_their_offset(tmp_path):
    tree = {"x": tensor("float32", "7", 24, (2, 2), None, 1, ("8", 10, 6))}
    back = tree_of(write_legacy(tmp_path / "a.pth", tree, {"7": (VALUES.tobytes(), 24)}))
    np.testing.assert_array_equal(back["x"].numpy(), [[11, 12], [13, 14]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_files_of_big_endian_machines_are_turned(tmp_path, dtype):
    array = np.array([1, 2, 300], stored_tensors.DTYPES[dtype])
    unsigned = array.view(f"u{array.itemsize}").byteswap().tobytes()
    path = write_zip(
        tmp_path / "a.pth", {"x": tensor(dtype, "0", 3, (3,))}, {"0": unsigned}, members={"byteorder": b"big"}
    )
    np.testing.assert_array_equal(tree_of(path)["x"].numpy(), array)
    refused(write_zip(tmp_path / "b.pth", {}, members={"byteorder": b"middle"}), "byte order")


def test_parameters_and_untyped_storages_are_tensors(tmp_path):
    ordered = Call(Global("collections", "OrderedDict"), ())
    plain = tensor("float32", "0", 24, (24,))
    untyped = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cuda:0", 96))
    tree = {
        "parameter": Call(Global("torch._utils", "_rebuild_parameter"), (plain, True, ordered)),
        "v3": Call(
            Global("torch._utils", "_rebuild_tensor_v3"),
            (untyped, 3, (2,), (1,), False, ordered, Global("torch", "float32")),
        ),
        "subclass": Call(
            Global("torch._tensor", "_rebuild_from_type_v2"),
            (Global("torch._utils", "_rebuild_tensor_v2"), Global("torch", "Tensor"), plain.arguments, {}),
        ),
        "size": Call(Global("torch", "Size"), ((3, 4),)),
        "dtype": Global("torch", "float16"),
    }
    back = tree_of(write_zip(tmp_path / "a.pth", tree, {"0": VALUES.tobytes()}))
    np.testing.assert_array_equal(back["parameter"].numpy(), VALUES.reshape(-1))
    np.testing.assert_array_equal(back["v3"].numpy(), [3, 4])
    np.testing.assert_array_equal(back["subclass"].numpy(), VALUES.reshape(-1))
    assert back["size"] == (3, 4)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_python_with_numpy_and_plain_objects_are_read(tmp_path, protocol):
    import argparse
    import collections

    value = {
        "numbers": [1, -1, 255, 256, 1 << 40, -(1 << 70), 1.5, True, None],
        "text": "Zürich \U0001d7db",
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "frozen": frozenset(["a"]),
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"k": [1]}),
        "namespace": argparse.Namespace(lr=0.1),
        "scalar": np.float64(0.25),
        "array": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    }
    if protocol == 5:
        del value["array"]  # numpy writes it through a function that only protocol 5 has
    back = tree_of(write_zip(tmp_path / "a.pth", pickle.dumps(value, protocol)))
    for key in ("numbers", "text", "bytes", "set", "frozen", "ordered", "counter", "default", "scalar"):
        assert back[key] == value[key], key
    assert back["namespace"].attributes == {"lr": 0.1}
    if protocol < 5:
        np.testing.assert_array_equal(back["array"].numpy(), value["array"])


def test_unknown_classes_become_inert_and_are_named(tmp_path):
    tree = {
        "weights": VALUES,
        "config": Call(Global("mmcv.utils.config", "Config"), (), {"lr": 1}),
        "time": Call(Global("datetime", "datetime"), (b"\x00" * 10,), None, b"\x81"),
    }
    checkpoint = read_checkpoint(write_zip(tmp_path / "a.pth", tree))
    assert isinstance(checkpoint.tree["config"], Inert) and checkpoint.tree["config"].attributes == {"lr": 1}
    assert isinstance(checkpoint.tree["time"], Inert)
    assert checkpoint.placeholders == ("datetime.datetime", "mmcv.utils.config.Config")
    np.testing.assert_array_equal(checkpoint.tree["weights"].numpy(), VALUES)


def test_a_tensor_that_depends_on_an_unknown_class_is_an_error(tmp_path):
    build = Global("torch._utils", "_rebuild_tensor_v2")
    odd = Call(Global("mypackage", "Storage"), ())
    refused(write_zip(tmp_path / "a.pth", {"x": Call(build, (odd, 0, (2,), (1,), False, None))}), "no storage")
    refused(write_zip(tmp_path / "b.pth", {"x": tensor("QInt8Storage", "0", 2, (2,))}), "torch.QInt8Storage")


def test_the_older_form_may_be_framed(tmp_path):
    """Protocol 4 puts a frame in front of each pickle, the magic number's too."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"epoch": 3}, []]
    path = tmp_path / "a.pth"
    path.write_bytes(b"".join(pickle.dumps(part, 4) for part in parts))
    assert read_checkpoint(path).kind == "legacy" and tree_of(path) == {"epoch": 3}


def test_files_of_an_installed_pytorch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 5)
    tree = {
        "state_dict": torch.nn.BatchNorm2d(3).state_dict(),
        "transposed": base.t(),
        "window": base[1:4, 2:],
        "diagonal": base.diagonal(),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "bool": base > 0,
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    tree |= {f"batch_norm.{name}": value for name, value in tree.pop("state_dict").items()}
    for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}, {"pickle_protocol": 5}):
        torch.save(tree, tmp_path / "a.pth", **options)
        back = tree_of(tmp_path / "a.pth")
        for name, value in tree.items():
            array = back[name].numpy()
            assert array.shape == tuple(value.shape) and str(value.dtype) == f"torch.{array.dtype}"
            np.testing.assert_array_equal(array.astype(np.float64), value.detach().double().numpy())


def test_safetensors_are_read(tmp_path):
    from safetensors.numpy import save_file

    arrays = {
        "a": VALUES,
        "b": np.array(3, np.int64),
        "c": VALUES.astype(ml_dtypes.bfloat16),
        "d": np.zeros((0, 2), np.float16),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.kind == "safetensors" and checkpoint.metadata == {"format": "pt"}
    for name, array in arrays.items():
        back = checkpoint.tree[name].numpy()
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array)


# ----------------------------------------------------------------------------------------------------- hostile files


READER = (
    budget,
    safetensors_reader,
    stored_tensors,
    torch_legacy,
    torch_objects,
    torch_pickle,
    torch_reader,
    torch_zip,
)


@pytest.mark.parametrize("module", READER, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_reader_holds_nothing_that_could_run_a_name(module):
    """The proof by reading: no module that imports or runs is loaded, no function that looks up names is called."""
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    } | {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    known = {
        "collections",
        "dataclasses",
        "itertools",
        "math",
        "mmap",
        "pathlib",
        "re",
        "struct",
        "sys",
        "time",
        "typing",
        "zlib",
    }
    assert imported <= known | {"ml_dtypes", "numpy", "haksnet_jax"}
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in ours if name.startswith("haksnet_jax")}
    assert ours <= {"haksnet_jax", "haksnet_jax.weights"} | {"haksnet_jax.weights.errors"} | {
        module.__name__ for module in READER
    }
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    forbidden = {"getattr", "setattr", "eval", "exec", "compile", "__import__", "globals", "vars", "locals", "open"}
    assert not names & forbidden
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"modules", "load", "loads", "__dict__", "__setstate__", "__reduce__", "__class__"}


class Evil:
    """Pickled for real: an object that asks for a call when it is read."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def _evil_objects(marker):
    import importlib
    import operator
    import subprocess

    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Evil(os.system, touch),
        "eval": Evil(eval, code),
        "exec": Evil(exec, code),
        "open": Evil(open, str(marker), "w"),
        "subprocess": Evil(subprocess.check_call, ["touch", str(marker)]),
        "import": Evil(__import__, "antigravity"),
        "importlib": Evil(importlib.import_module, "antigravity"),
        "getattr": Evil(getattr, Evil(importlib.import_module, "os"), "system"),
        "attrgetter": Evil(operator.attrgetter("system"), os),
        "nested": Evil(map, Evil(getattr, Evil(__import__, "os"), "system"), [touch]),
        "compile": Evil(eval, Evil(compile, code, "x", "exec")),
        "setstate": Evil(type("x", (), {}).__class__, "x", (), {}, state={"__setstate__": Evil(os.system, touch)}),
        "tensor": Evil(os.system, touch),
    }


EVIL = ["os.system", "eval", "exec", "open", "subprocess", "import", "importlib", "getattr", "nested", "compile"]


@pytest.mark.parametrize("kind", [*EVIL, "setstate"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_real_exploits_run_nothing_and_are_refused(tmp_path, kind, protocol):
    marker = tmp_path / "marker"
    objects = _evil_objects(marker)
    data = pickle.dumps({"state_dict": {"w": 1}, "meta": objects[kind]}, protocol)
    for root in ("archive", ""):
        path = tmp_path / f"{root}.pth"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{root}/data.pkl" if root else "data.pkl", data)
        refused(path, "which can run commands", "nothing of it was run")
    assert not marker.exists()
    refused_legacy = tmp_path / "legacy.pth"
    head = pickle_bytes(0x1950A86A20F9469CFC6C) + pickle_bytes(1001) + pickle_bytes({"little_endian": True})
    refused_legacy.write_bytes(head + data)
    refused(refused_legacy, "which can run commands")
    assert not marker.exists()


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(b"cos\nsystem\n(X\x02\x00\x00\x00id\x74R", id="GLOBAL and REDUCE"),
        pytest.param(b"\x8c\x02os\x8c\x06system\x93(\x8c\x02id\x74R", id="STACK_GLOBAL and REDUCE"),
        pytest.param(b"\x8c\x07builtins\x8c\x0dprint.__self__\x93", id="STACK_GLOBAL with a dotted name"),
        pytest.param(b"\x8c\x02os\x8c\x04a\nb\x1b\x93", id="STACK_GLOBAL with a line break"),
        pytest.param(b"(X\x02\x00\x00\x00idios\nsystem\n", id="INST"),
        pytest.param(b"(cos\nsystem\nX\x02\x00\x00\x00ido", id="OBJ"),
        pytest.param(b"cos\nsystem\n(X\x02\x00\x00\x00idt\x81", id="NEWOBJ"),
        pytest.param(b"cos\nsystem\n(X\x02\x00\x00\x00idt}\x92", id="NEWOBJ_EX"),
        pytest.param(b"\x82\x01", id="EXT1"),
        pytest.param(b"\x83\x01\x00", id="EXT2"),
        pytest.param(b"\x84\x01\x00\x00\x00", id="EXT4"),
        pytest.param(b"Pos.system\n", id="PERSID"),
        pytest.param(b"X\x02\x00\x00\x00idQ", id="BINPERSID of text"),
        pytest.param(b"\x97", id="NEXT_BUFFER"),
        pytest.param(b"\x98", id="READONLY_BUFFER"),
        pytest.param(b"cmypackage\nThing\n}X\x01\x00\x00\x00aK\x01sb", id="BUILD on a class"),
        pytest.param(b"]}b", id="BUILD on a list"),
        pytest.param(b"cmypackage\nthing\n)R)R", id="REDUCE of a result"),
        pytest.param(b"K\x01)R", id="REDUCE of a number"),
        pytest.param(b"X\x02\x00\x00\x00os)R", id="REDUCE of text"),
        pytest.param(b"cmypackage\nthing\n]R", id="REDUCE with a list"),
        pytest.param(b"S'text'\n", id="STRING"),
        pytest.param(b"I1\n", id="INT as text"),
        pytest.param(b"\x8b\xff\xff\xff\x7f1", id="LONG4 of two gigabytes"),
        pytest.param(b"X\xff\xff\xff\x7fshort", id="BINUNICODE that claims two gigabytes"),
        pytest.param(b"\x8d" + b"\xff" * 8 + b"short", id="BINUNICODE8 that claims everything"),
        pytest.param(b"\x8e" + b"\xff" * 7 + b"\x7fshort", id="BINBYTES8 that claims everything"),
        pytest.param(b"\x96" + b"\xff" * 7 + b"\x00short", id="BYTEARRAY8 that claims everything"),
        pytest.param(b"C\x7fshort", id="SHORT_BINBYTES past the end"),
        pytest.param(b"h\x05", id="BINGET of nothing"),
        pytest.param(b"q\x05", id="BINPUT of nothing"),
        pytest.param(b"t", id="TUPLE without a mark"),
        pytest.param(b"K\x01\x87", id="TUPLE3 of one"),
        pytest.param(b"}K\x01s", id="SETITEM without a value"),
        pytest.param(b"}(K\x01u", id="SETITEMS without a value"),
        pytest.param(b"K\x01K\x02a", id="APPEND to a number"),
        pytest.param(b"K\x01(K\x02\x90", id="ADDITEMS to a number"),
        pytest.param(b"\x80\x09N", id="PROTO 9"),
        pytest.param(b"\xff", id="no operation"),
        pytest.param(b"", id="STOP alone"),
        pytest.param(b"c" + b"x" * 5000, id="a name without an end"),
        pytest.param(b"X\x01\x00\x00\x00\xff", id="text that is not UTF-8"),
    ],
)
def test_every_operation_that_could_do_harm_is_refused(tmp_path, operations):
    refused(write_zip(tmp_path / "a.pth", {"x": Raw(operations)}))
    refused(write_zip(tmp_path / "b.pth", pickle_bytes(Raw(operations))))


def test_a_large_memo_index_costs_nothing(tmp_path):
    back = tree_of(write_zip(tmp_path / "a.pth", pickle_bytes(Raw(b"}r\xff\xff\xff\xff0j\xff\xff\xff\xff"))))
    assert back == {}


def test_every_opcode_of_python_is_either_known_or_refused():
    import pickletools

    known = {*torch_pickle._OPERATIONS, *torch_pickle._REFUSED, ord(".")}
    assert {ord(op.code) for op in pickletools.opcodes} <= known


@pytest.mark.parametrize(
    ("nested", "words"),
    [
        (b"]" * 30_000 + b"a" * 29_999, "deeper"),
        (b")" + b"\x85" * 30_000, "deeper"),
        (b"}" + b"K\x00}" * 10_000 + b"s" * 10_000, "deeper"),
        (b"(" * 30_000, "damaged"),
        (b"]q\x00h\x00a", "contain themselves"),
        (b"}q\x00K\x01h\x00s", "contain themselves"),
        (b"cargparse\nNamespace\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb", "contain themselves"),
    ],
)
def test_endless_nesting_is_refused(tmp_path, nested, words):
    refused(write_zip(tmp_path / "a.pth", pickle_bytes(Raw(nested))), words)


def test_endless_operations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_OPERATIONS", 10_000)
    refused(write_zip(tmp_path / "a.pth", pickle_bytes(Raw(b"N0" * 6_000))), "more than 10,000 operations")
    monkeypatch.setattr(torch_pickle, "MAX_PICKLE_BYTES", 10_000)
    refused(write_zip(tmp_path / "b.pth", pickle_bytes({"x": bytes(10_000)})), "longer than 10,000 bytes")


def test_pairs_of_pairs_take_no_exponential_time(tmp_path):
    """Forty levels of (t, t), shared: 2^40 leaves for whoever walks or hashes them naively."""
    pairs = b"K\x01" + b"2\x86" * 40
    back = tree_of(write_zip(tmp_path / "a.pth", {"x": Raw(pairs), "set": Raw(b"(" + pairs + b"\x91")}))
    assert isinstance(back["x"], tuple) and len(back["set"]) == 1


def test_numbers_chosen_to_collide_do_not_slow_dictionaries(tmp_path):
    """Multiples of 2^61 - 1 have hash 0 in Python: 20,000 of them would cost 200 million comparisons."""
    multiples = ((k * ((1 << 61) - 1)).to_bytes(12, "little") for k in range(1, 20_001))
    items = b"".join(b"\x8a\x0c" + number + b"N" for number in multiples)
    tree = tree_of(write_zip(tmp_path / "a.pth", pickle_bytes(Raw(b"}(" + items + b"u"))))
    assert len(tree) == 20_000 and all(isinstance(key, Inert) for key in tree)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (tensor("float32", "0", 100, (100,)), "claims 400 bytes and holds 96"),
        (tensor("float32", "0", 24, (25,)), "past the 24 elements"),
        (tensor("float32", "0", 24, (4, 6), None, 1), "past the 24 elements"),
        (tensor("float32", "0", 24, (2,), (24,)), "past the 24 elements"),
        (tensor("float32", "0", 24, (2,), (-1,), 5), "not negative"),
        (tensor("float32", "0", 24, (2,), (1,), -1), "not negative"),
        (tensor("float32", "0", 24, (-2,), (1,)), "not negative"),
        (tensor("float32", "0", -24, (2,), (1,)), "not negative"),
        (tensor("float32", "0", 24, (1 << 40, 1 << 30), (0, 0)), "repeats"),
        (tensor("float32", "0", 24, (25,), (0,)), "repeats"),
        (tensor("float32", "0", 24, (1 << 61, 1 << 61), (1 << 61, 1 << 61)), "past"),
        (tensor("float32", "0", 24, (1 << 70,), (1,)), "not negative"),
        (tensor("float32", "0", 24, (2, 2), (1,)), "2 sizes and 1 strides"),
        (tensor("float32", "0", 24, (1,) * 33, (1,) * 33), "short list"),
        (tensor("float32", "0", 24, (True,), (1,)), "not negative"),
        (tensor("float32", "0", 24, (2.0,), (1,)), "not negative"),
        (tensor("float32", "../../etc/passwd", 24, (2,)), "storage is named"),
        (tensor("float32", "/etc/passwd", 24, (2,)), "storage is named"),
        (tensor("float32", "0\x00", 24, (2,)), "storage is named"),
        (tensor("float32", "9", 24, (2,)), "not stored"),
        (tensor("float32", "0", 24, (2,), None, 0, ("1", 0, 2)), "view metadata"),
        (tensor("float32", 7, 24, (2,)), "storage is named"),
        (Persistent(("file", "x")), "not a storage"),
        (Call(Global("torch", "Size"), ((-1,),)), "not negative"),
        (Call(Global("torch._utils", "_rebuild_tensor_v2"), ()), "damaged"),
        (Call(Global("torch._utils", "_rebuild_tensor_v2"), (1, 2)), "damaged"),
        (Call(Global("torch._utils", "_rebuild_parameter"), (Global("os2", "x"),)), "no tensor"),
    ],
)
def test_tensors_that_are_not_inside_their_storage_are_refused(tmp_path, value, words):
    refused(write_zip(tmp_path / "a.pth", {"x": value}, {"0": VALUES.tobytes()}), words)


def test_many_views_of_one_storage_may_not_add_up_to_terabytes(tmp_path):
    value = [tensor("uint8", "0", 1 << 20, (1 << 20,))] * 10_000
    refused(write_zip(tmp_path / "a.pth", value, {"0": bytes(1 << 20)}), "claim more than")
    refused(write_zip(tmp_path / "b.pth", {"x": VALUES}), "claim more than 10 bytes", max_bytes=10)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ((1, (1 << 40,), "f4", False, b"abcd"), "do not fit"),
        ((1, (-1,), "f4", False, b"abcd"), "not negative"),
        ((1, (1,), "O8", False, [1]), "dtype 'O8'"),
        ((1, (1,), "V4", False, b"abcd"), "dtype 'V4'"),
        ((1, (1,), "f4,f4", False, b"abcdabcd"), "dtype 'f4,f4'"),
        ((1, (1,)), "without shape"),
    ],
)
def test_numpy_arrays_that_do_not_fit_are_refused(tmp_path, state, words):
    if len(state) > 2:
        dtype = Call(Global("numpy", "dtype"), (state[2], False, True), (3, "<", None, None, None, -1, -1, 0))
        state = (*state[:2], dtype, *state[3:])
    reconstruct = Global("numpy.core.multiarray", "_reconstruct")
    value = Call(reconstruct, (Global("numpy", "ndarray"), (0,), b"b"), state)
    refused(write_zip(tmp_path / "a.pth", {"x": value}), words)


def test_zip_bombs_are_refused(tmp_path):
    bomb = tensor("uint8", "0", 1 << 26, (1 << 26,))
    path = write_zip(tmp_path / "a.pth", {"x": bomb}, {"0": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    refused(path, "compressed")
    # Stored, but with a directory that promises more than there is.
    path = write_zip(tmp_path / "b.pth", {"x": VALUES})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    struct.pack_into("<II", data, entry + 20, 1 << 30, 1 << 30)
    path.write_bytes(data)
    refused(path, "past the end of the file")
    # A directory that claims gigabytes.
    struct.pack_into("<I", data, len(data) - 22 + 12, 0xF0000000)
    path.write_bytes(data)
    refused(path, "directory")


def test_odd_zip_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "none.pth", "w") as file:
        file.writestr("readme", "")
    refused(tmp_path / "none.pth", "0 members named data.pkl")
    with zipfile.ZipFile(tmp_path / "two.pth", "w") as file:
        file.writestr("a/data.pkl", pickle_bytes({}))
        file.writestr("b/data.pkl", pickle_bytes({}))
    refused(tmp_path / "two.pth", "2 members named data.pkl")
    refused(write_zip(tmp_path / "script.pth", {}, members={"code/__torch__.py": b""}), "TorchScript")
    with pytest.warns(UserWarning, match="Duplicate"):
        refused(write_zip(tmp_path / "dup.pth", {}, members={"version": b"3"}), "twice")


def test_a_damaged_byte_in_a_storage_is_noticed(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"x": VALUES})
    data = path.read_bytes().replace(VALUES.tobytes(), VALUES.tobytes()[:-1] + b"\x00")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        tree_of(path)["x"].numpy()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "cut short"),
        (pickle.dumps({"a": 1}), "not one that torch.save wrote"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "neither"),
        (bytes(4096), "neither"),
        (b"x", "neither"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(tmp_path, content, words):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert str(path) in refused(path, words)


def test_folders_pipes_and_missing_files_are_refused(tmp_path):
    refused(tmp_path, "is a folder")
    refused(tmp_path / "nothing.pth", "No such file")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "not a regular file")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}, "needs 8 bytes"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "needs 16 bytes"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "not negative"),
        ({"a": {"dtype": "F32", "shape": [1 << 61, 8], "data_offsets": [0, 0]}}, "needs"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "needs 8 bytes"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "not described"),
        ({"a": 1}, "not described"),
        ({"__metadata__": {"a": 1}}, "metadata"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header, words):
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(path, words)


def test_hostile_safetensors_headers_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}" + bytes(32))
    refused(path, "header claims")
    path.write_bytes(struct.pack("<Q", 1000) + b"{}" + bytes(32))
    refused(path, "cut short")
    nested = b'{"a":' + b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(nested)) + nested)
    refused(path, "not the JSON")
    views = {str(i): {"dtype": "U8", "shape": [1 << 20], "data_offsets": [0, 1 << 20]} for i in range(200)}
    text = json.dumps(views).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(1 << 20))
    refused(path, "claim more than")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-10], "cut short"),
        (lambda data: data[:-200], "ends too early|damaged|cut short"),
        (lambda data: data[:30], "cut short|damaged"),
        (lambda data: data.replace(struct.pack("<q", 24), struct.pack("<q", -24)), "holds -24"),
        (lambda data: data.replace(struct.pack("<q", 24), struct.pack("<q", 1 << 60)), "holds"),
        (lambda data: data.replace(b"little_endian", b"middle_endian"), "big-endian"),
    ],
)
def test_damaged_files_of_the_older_form_are_refused(tmp_path, change, words):
    path = write_legacy(tmp_path / "a.pth", {"x": VALUES})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(path)


def test_views_and_storages_of_the_older_form_must_fit(tmp_path):
    raw = {"7": (VALUES.tobytes(), 24)}
    refused(
        write_legacy(tmp_path / "a.pth", {"x": tensor("float32", "7", 24, (2,), None, 0, ("8", 20, 6))}, raw), "past"
    )
    refused(
        write_legacy(tmp_path / "b.pth", {"x": tensor("float32", "7", 24, (2,), None, 0, ("8", -1, 6))}, raw),
        "negative",
    )
    refused(write_legacy(tmp_path / "c.pth", {"x": tensor("float32", "6", 24, (2,), None, 0, None)}, raw), "storages")
    both = [storage("float32", "7", 24, None), storage("float64", "7", 24, None)]
    refused(write_legacy(tmp_path / "d.pth", both, raw), "two ways")


def test_damage_anywhere_is_a_sentence_or_harmless(tmp_path):
    """Random bytes and cuts, 600 of them: an error of ours or a result, never another exception."""
    draw = random.Random(0)
    path = tmp_path / "a.pth"
    tree = {"meta": {"CLASSES": ("a", "b"), "n": 1.5}, "state_dict": {"x": VALUES, "y": VALUES[0].astype(np.float16)}}
    for write in (write_zip, write_legacy):
        whole = write(path, tree).read_bytes()
        for kind, _ in itertools.product(("flip", "cut", "insert"), range(100)):
            data = bytearray(whole)
            place = draw.randrange(len(data))
            if kind == "flip":
                data[place] = draw.randrange(256)
            elif kind == "cut":
                del data[place : place + draw.choice([1, 7, 10_000])]
            else:
                data[place:place] = draw.randbytes(draw.choice([1, 4, 9]))
            path.write_bytes(data)
            try:
                found = tree_of(path)
                parts = found.get("state_dict", {}) if isinstance(found, dict) else {}
                for value in parts.values() if isinstance(parts, dict) else ():
                    if isinstance(value, StoredTensor):
                        value.numpy()
            except CheckpointError:
                pass


def test_data_written_by_zipfile_in_any_order_are_found(tmp_path):
    """Members are found by the directory, wherever they lie, with extra fields and a comment at the end."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("model/data/0")
        info.extra = struct.pack("<HH", 0x4246, 20) + bytes(20)  # padding, as torch.save aligns storages
        file.writestr(info, VALUES.tobytes())
        file.writestr("model/data.pkl", pickle_bytes({"x": tensor("float32", "0", 24, (24,))}))
        file.comment = b"comment"
    path = tmp_path / "a.pth"
    path.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(tree_of(path)["x"].numpy(), VALUES.reshape(-1))
