"""The command that trains, with the task of dummy_task.py: WORKDIR [LARGEST FILE IN BYTES] [KEY=NUMBER ...]."""

import pathlib
import resource
import signal
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import dummy_task

from haksnet_jax import main, tasks
from haksnet_jax.cli import program

if __name__ == "__main__":
    workdir, largest, *changes = sys.argv[1:]
    tasks.TASKS["dummy"] = "dummy_task"
    program._set_up_log(types.SimpleNamespace(verbose=False, quiet=False))
    config = dummy_task.make_config(**{name: int(value) for name, value in (change.split("=") for change in changes)})
    if int(largest):  # writing beyond it is an error, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    program._exit(program.guarded(main.train, config, workdir))
