"""Files of arrays: what NumPy writes is read the same; bombs, pickles and damage are refused before memory is taken."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from haksnet_jax import npz

ARRAYS = {
    "names": np.array(["a", "größe"]),
    "none": np.zeros((0, 4, 2), np.float32),
    "count": np.array(7),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "train/labels": np.arange(5, dtype=np.int64),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_the_same(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    found = npz.read(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert npz.read(tmp_path / "a.npz", ["count"]).keys() == {"count"}


def _npy(shape, dtype="<f4", content=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + content


def _archive(path, content, name="x.npy"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)


BOMBS = {
    "32 MB of zeros in some kilobytes": _npy("(8388608,)", content=bytes(32 << 20)),
    "a shape beyond what the entry holds": _npy("(1000000000000,)"),
    "a shape whose product is beyond 64 bits": _npy("(4294967296, 4294967296, 4294967296)"),
    "objects": _npy("(1,)", "|O", b"cos\nsystem\n."),
    "a header that is a program": _npy("(1,)" + "-" * 5000),
    "negative": _npy("(-4,)", content=bytes(16)),
    "a record": _npy("(1,)", "<f4', 'x': '", bytes(4)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_pickles_are_refused_before_memory_is_taken(name, tmp_path):
    path = tmp_path / "a.npz"
    _archive(path, BOMBS[name])
    tracemalloc.start()
    with pytest.raises(npz.DamagedError):
        npz.read(path, max_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_every_flipped_bit_of_the_numbers_is_noticed(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(100, dtype=np.int32))
    whole = buffer.getvalue()
    place = whole.index(np.arange(3, dtype=np.int32).tobytes()[4:])
    for bit in range(0, 8 * 99 * 4, 61):
        data = bytearray(whole)
        data[place + bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(npz.DamagedError):
            npz.read(tmp_path / "a.npz")


def test_a_missing_array_and_a_cut_file_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(npz.DamagedError, match="lacks the array b"):
        npz.read(tmp_path / "a.npz", ["b"])
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    with pytest.raises(npz.DamagedError):
        npz.read(tmp_path / "a.npz")
