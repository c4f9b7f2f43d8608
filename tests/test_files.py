"""A folder is written into by one process at a time, and a dead process holds nothing."""

import os
import signal
import subprocess
import sys

import pytest

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import reader
from haksnet_jax.images.headers import read_header
from haksnet_jax.labels import dota, label_set, masks

HOLD = """import sys, time
from haksnet_jax import files
with files.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    process = _holder(tmp_path)
    with pytest.raises(UserError, match=f"process {process.pid} on .* since 20"), files.held(tmp_path):
        pass
    process.kill()
    process.wait()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = _holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with files.held(tmp_path):
        pass
    assert not os.listdir(tmp_path)  # nothing is left that a later command could take for data


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_only_looks_like_a_file_is_a_sentence_and_holds_nobody_up(kind, tmp_path):
    """A pipe without a writer never answers, and /dev/zero never ends."""
    for name in ("a.png", "a.tif", "a.txt", "a.xml", "a.json"):
        path = tmp_path / name
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for use in (
        lambda: files.read_regular(tmp_path / "a.png"),
        lambda: read_header(tmp_path / "a.png"),
        lambda: reader.read(tmp_path / "a.tif"),
        lambda: dota.read_labels(tmp_path / "a.txt", ("ship",)),
    ):
        with pytest.raises(OSError, match="a pipe or a device"):
            use()
    for format in ("dota", "yolo-obb", "rolabelimg", "labelme"):
        _, (problem,) = label_set.LabelSet(tmp_path, format).read("a", ("ship",), None)
        assert problem.reason == "unreadable_labels" and "pipe or a device" in problem.detail
    with pytest.raises(UserError, match="a pipe or a device"):
        masks.read_mask(tmp_path / "a.png", masks.number_legend(2))


def test_a_file_beyond_a_limit_and_a_folder_are_named(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert files.read_regular(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(OSError, match="11 bytes, at most 10"):
        files.read_regular(tmp_path / "a", 10)
    with pytest.raises(IsADirectoryError):
        files.read_regular(tmp_path)
