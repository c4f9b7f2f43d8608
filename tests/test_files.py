"""A folder is written into by one process at a time, and a dead process holds nothing."""

import os
import signal
import subprocess
import sys

import pytest

from haksnet_jax import files
from haksnet_jax.errors import UserError

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
