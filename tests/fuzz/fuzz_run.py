"""Damages files of some families and uses each; a program of its own, since its guards hold for a whole process.

    python tests/fuzz/fuzz_run.py --families=pth,tiff --files=100000 [--seconds=3] --seed=0 --folder=DIR

Prints what was seen as JSON. A failure is: an exception that is no UserError, a message that is no single printable
line, more than 5 s of computing or 1 GiB of memory for a file, and every import, execution, writing, process or
connection.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import time
import traceback

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "goldens"))

import cv2  # noqa: E402
from fuzz_families import FAMILIES  # noqa: E402

from haksnet_jax.errors import UserError  # noqa: E402

SECONDS = 5.0  # of computing, for one file
BYTES = 1 << 30
MAX_FAILURES = 20

# Events that a file of data must never cause, by the beginning of their names.
FORBIDDEN = (
    *("import", "exec", "compile", "open", "subprocess", "socket", "ctypes", "ftplib", "http", "urllib", "smtplib"),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill", "os.putenv"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("pickle", "marshal", "code.", "shutil", "tempfile", "webbrowser", "sys.addaudithook", "signal", "gc."),
)
# The standard library finds its text codecs by importing them: an XML file may name any of them.
HARMLESS_IMPORTS = ("encodings", "_codecs_", "_multibytecodec")


class Guard:
    """An audit hook, which cannot be taken out again: it listens while a file is used."""

    def __init__(self):
        self.active = False
        self.seen = []
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if not self.active or not event.startswith(FORBIDDEN):
            return
        if event == "open":
            _, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+")
            if not writes and not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
        if event == "import" and str(arguments[0]).startswith(HARMLESS_IMPORTS):
            return
        if event == "marshal.loads" and b"/encodings/" in arguments[0]:
            return
        if event in ("exec", "compile"):
            code = arguments[0] if event == "exec" else arguments[1]
            name = str(getattr(code, "co_filename", code))
            if "/encodings/" in name or name.startswith("<frozen"):
                return
        self.seen.append(f"{event} {str(arguments)[:200]}")


def _out_of_time(*_):
    raise TimeoutError(f"more than {SECONDS:g} s of computing")


def _what_is_wrong(use, guard):
    """Uses a file. Returns: ("read" | "refused", None) or ("", words for a failure)."""
    started, outcome, wrong = time.process_time(), "read", None
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    guard.seen.clear()
    guard.active = True
    try:
        try:
            use()
        finally:
            guard.active = False  # (telling of an error compiles its lines)
    except UserError as error:
        outcome, message = "refused", str(error)
        if "\n" in message or not message.isprintable() or len(message) > 3000:
            wrong = f"a message of {len(message)} letters that is no printable line: {message[:300]!r}"
    except MemoryError:
        wrong = f"more than {BYTES >> 20} MiB"
    except BaseException:
        wrong = traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if guard.seen:
        wrong = f"{guard.seen[:3]}\n{wrong or ''}"
    seconds = time.process_time() - started
    if seconds > SECONDS:
        wrong = wrong or f"{seconds:.1f} s of computing"
    return outcome, wrong


def fuzz(name, folder, guard, *, seed, num_files, seconds):
    """Runs one family. Returns: dict of counts and failures."""
    folder.mkdir(parents=True)
    make = FAMILIES[name](folder)
    counts, failures, kinds, slowest, largest = {"read": 0, "refused": 0}, [], set(), (0.0, 0), (0, 0)
    at_start = peak = _peak()
    end = time.monotonic() + seconds
    for number in range(num_files):
        if time.monotonic() > end or len(failures) >= MAX_FAILURES:
            break
        if number % 1000 == 0 and isinstance(guard, Guard):  # (the first uses load what they need)
            _limit_memory()
        draw = random.Random(f"{name} {seed} {number}")
        use = make(draw)
        started = time.process_time()
        outcome, wrong = _what_is_wrong(use, guard)
        slowest = max(slowest, (time.process_time() - started, number))
        if _peak() > peak:
            peak = _peak()
            largest = (peak - at_start, number)
        counts[outcome] += 1
        if wrong:
            kind = wrong.strip().splitlines()[-1][:80]
            if kind not in kinds:  # the same fault once
                kinds.add(kind)
                kept = folder.parent / f"failure-{name}-{seed}-{number}"
                shutil.copytree(folder, kept)
                failures.append({"seed": seed, "number": number, "kept": str(kept), "what": wrong})
    return {
        **counts,
        "failures": failures,
        "slowest": {"seconds": round(slowest[0], 3), "number": slowest[1]},
        "largest": {"MiB": round(largest[0] / 2**20), "number": largest[1]},  # beyond the most that came before
    }


def _limit_memory():
    """Limits the process to BYTES beyond what it has mapped: libraries keep some kilobytes of each file they read."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, resource.RLIM_INFINITY))


def _peak():
    """The most bytes of memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--files", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    signal.signal(signal.SIGPROF, _out_of_time)
    guard = Guard()
    # What is loaded at the first use is loaded now: afterwards every import is a file's doing.
    for name in arguments.families.split(","):
        guard.seen.clear()
        fuzz(name, arguments.folder / f"first-{name}", Silent(), seed="first", num_files=100, seconds=3)
    found = {}
    for name in arguments.families.split(","):
        found[name] = fuzz(
            name,
            arguments.folder / name,
            guard,
            seed=arguments.seed,
            num_files=arguments.files,
            seconds=arguments.seconds,
        )
    print(json.dumps(found))


class Silent:
    """A guard that hears nothing."""

    active = False

    def __init__(self):
        self.seen = []


if __name__ == "__main__":
    main()
