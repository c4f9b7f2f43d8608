"""Damaged files of every family that may come from strangers: a sentence or a result, and nothing else happens.

`fuzz_run.py` runs in a process of its own, with limits on time and memory and a guard on imports, execution, writing,
processes and connections. The same seed damages the same files.
"""

import json
import pathlib
import subprocess
import sys

import pytest

TOGETHER = [("pth", "model_pth", "safetensors"), ("tiff", "jpeg", "png", "masks"), ("labels", "json", "records")]
ALL = [family for families in TOGETHER for family in families]


def fuzz(folder, families, timeout, **options):
    """What `fuzz_run.py` saw. Args: folder; families; timeout, seconds; **options of the program."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name("fuzz_run.py")), f"--folder={folder / 'files'}"]
    command += [f"--families={','.join(families)}", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    failures = [f"{family}: {one}" for family, seen in found.items() for one in seen["failures"]]
    assert not failures, "\n".join(failures)
    return found


@pytest.mark.parametrize("families", TOGETHER, ids="-".join)
def test_a_few_thousand_damaged_files_are_read_or_refused(families, tmp_path):
    found = fuzz(tmp_path, families, 400, seed=0, seconds=2.5)
    for family, seen in found.items():
        assert seen["read"] + seen["refused"] >= 3, family  # (whole detectors on a busy machine; else hundreds)
        assert seen["refused"] > 0, family


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_a_hundred_thousand_damaged_files_are_read_or_refused(family, tmp_path):
    seen = fuzz(tmp_path, (family,), 7200, seed=1, files=100_000)[family]
    assert seen["read"] + seen["refused"] == 100_000


def test_the_guard_hears_what_it_should(tmp_path):
    """The guard itself, with a family whose files do what no file may do."""
    program = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
sys.argv = ["fuzz_run", "--folder=" + {str(tmp_path / "files")!r}]
import fuzz_run, signal
signal.signal(signal.SIGPROF, fuzz_run._out_of_time)
fuzz_run.SECONDS = 0.3
guard = fuzz_run.Guard()
def forever():
    while True: pass
acts = [
    lambda: __import__("antigravity_of_a_file"),
    lambda: exec("1"),
    lambda: open({str(tmp_path / "written")!r}, "w"),
    lambda: __import__("subprocess").Popen(["true"]),
    lambda: __import__("socket").create_connection(("127.0.0.1", 9)),
    lambda: __import__("os").system("true"),
    forever,
    lambda: {{}}["a bug"],
]
for act in acts:
    print(fuzz_run._what_is_wrong(act, guard)[1] is not None)
print(fuzz_run._what_is_wrong(lambda: open("/etc/hostname").read(), guard)[1] is None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 9, done.stdout + done.stderr[-2000:]
