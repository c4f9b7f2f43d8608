"""The program `haksnet`: which commands there are, and the one place where a user's mistake becomes a sentence.

    haksnet COMMAND ...    python -m haksnet_jax COMMAND ...

A command is the file of its name beside this one, with `add_arguments(parser)` and `run(arguments)`, which returns an
exit status (None: 0). Importing it takes no time: what a command needs is imported when it runs.
"""

import contextlib
import difflib
import errno
import glob
import importlib
import importlib.util
import io
import logging as python_logging
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from haksnet_jax.cli import terminal
from haksnet_jax.errors import UserError

COMMANDS = {
    "train": "train a model, or go on with a run",
    "evaluate": "score a model or predictions against labels",
    "predict": "find objects in images of any size",
    "convert": "PyTorch checkpoints to this format and back",
    "export": "a model as ONNX, StableHLO or SavedModel, to run elsewhere",
    "validate": "check a data set: every problem with file and line",
    "split": "cut large images and their labels into tiles",
    "build": "pack a data set for training",
    "report": "one HTML file of a run or an evaluation: metrics, errors, images",
    "submit": "pack predictions for DOTA's evaluation server",
    "plan": "memory and speed of a run on devices that are not here",
    "benchmark": "time the parts of a model on this machine",
    "parity": "compare with recorded outputs of the PyTorch code",
    "doctor": "what works on this machine, and what to do about what does not",
    "info": "what a checkpoint, a weight file, an image or a data set is",
    "version": "versions of the package and what it runs on",
}

_PACKAGE = str(pathlib.Path(__file__).resolve().parents[1])

# What other programs call them.
_SYNONYMS = {
    "detect": "predict",
    "infer": "predict",
    "obb": "predict",
    "val": "evaluate",
    "test": "evaluate",
    "score": "evaluate",
    "check": "validate",
    "tile": "split",
    "pack": "build",
    "env": "doctor",
}

OK, FAILED, WRONG_USE, STOPPED = 0, 1, 2, 130

_DESCRIPTION = """Finds objects in aerial images as rotated boxes, classes of pixels, and changes: HAKSNet in JAX.

    haksnet predict --checkpoint=demo --images=demo --output=found
    haksnet train --config=folder_small --set data.root=mydata --workdir=runs/mine
    haksnet evaluate --checkpoint=runs/mine
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "haksnet") -> int:
    """Runs a command.

    Args:
      argv: words after the program's name; default: those that the process was started with.
      prog: how the program is called, for its help.

    Returns:
      Exit status: 0 done; 1 not possible, with a sentence; 2 wrong use; 75 stopped, come again; 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else [str(argument) for argument in argv]
    try:
        status = _dispatch(argv, prog)
        sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse: help, version, wrong use
        if isinstance(end.code, str):  # a sentence, which Python prints
            raise
        return end.code or OK
    except KeyboardInterrupt:  # while modules are loaded, before the command itself has begun
        _say("stopped")
        return STOPPED
    except BrokenPipeError:  # whoever read has seen enough: `haksnet info ... | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def run_as(*command: str) -> NoReturn:
    """A command under its own name: `python -m haksnet_jax.main`. Args: command, its words. Ends the process."""
    _exit(main([*command, *sys.argv[1:]]))


def entry() -> NoReturn:
    """Entry point of the installed program. Ends the process."""
    _exit(main())


def _exit(status: int) -> NoReturn:
    if status in (STOPPED, FAILED):
        # At once: what still runs on a device crashes when the interpreter is taken apart under it, and a library's
        # thread may wait for ever for what failed.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _dispatch(argv, prog):
    name = argv[0] if argv else ""
    if name not in COMMANDS:
        return _without_command(argv, prog)
    parser = parser_of(name, prog)
    arguments = parser.parse_args(argv[1:])
    module = importlib.import_module(f"haksnet_jax.cli.{name}")
    _set_up_log(arguments)
    _leave_out_absent_tpus()
    quiet = contextlib.redirect_stderr(_Warnings(sys.stderr)) if arguments.quiet else contextlib.nullcontext()
    with quiet:
        return guarded(module.run, arguments, verbose=arguments.verbose, prog=parser.prog)


def parser_of(command: str, prog: str = "haksnet") -> terminal.Parser:
    """The parser of a command's options. Args: command, a key of COMMANDS; prog. Returns: terminal.Parser."""
    module = importlib.import_module(f"haksnet_jax.cli.{command}")
    parser = terminal.Parser(f"{prog} {command}", module.__doc__ or "")
    module.add_arguments(parser)
    parser.add_common()
    return parser


def guarded(function: Callable[..., int | None], *arguments: Any, verbose: bool = False, prog: str = "haksnet") -> int:
    """Runs a function; a user's mistake is printed in one sentence.

    Args:
      function, *arguments: what is run; it returns an exit status, or None for 0.
      verbose: True shows where an error was raised. So does HAKSNET_TRACEBACK=1 in the environment.
      prog: the command, for the sentence about wrong use.

    Returns:
      Exit status.
    """
    try:
        return function(*arguments) or OK
    except terminal.UsageError as error:
        _say(f"error: {error} ({prog} --help shows the options)")
        return WRONG_USE
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if verbose or os.environ.get("HAKSNET_TRACEBACK"):
            traceback.print_exc()
        _say(f"error: {sentence}")
        return FAILED
    except KeyboardInterrupt as interrupt:  # some say what the same command will do when it is given again
        _say(str(interrupt) or "stopped")
        return STOPPED


def _sentence(error):
    """What is said of an error, or None where it is none of the user's or the system's."""
    if isinstance(error, UserError):
        return str(error)
    if not error.strerror:
        return None
    where = f"{error.filename}: " if error.filename else ""
    remedy = {
        errno.ENOSPC: "; make room there, or write elsewhere",
        errno.EACCES: "; change its permissions, or name another place",
        errno.EROFS: "; name another place",
        errno.EMFILE: "; raise the limit with `ulimit -n 65536`",
    }.get(error.errno, "")
    return f"{where}{error.strerror}{remedy}"


def _say(text):
    """Prints to the terminal, without control characters: names may come out of files."""
    text = "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    print(text, file=sys.stderr, flush=True)


def _set_up_log(arguments):
    """Lets log lines be plain lines on the terminal."""
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # absl's own, which it would warn of at the first line
    if not arguments.verbose:  # libraries' warnings are for those who write programs with them
        warnings.filterwarnings("ignore", module=r"(?!haksnet_jax\b)")
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(None)
    handler.python_handler.stream = sys.stderr
    handler.filters = [] if arguments.verbose else [_is_ours]
    level = logging.WARNING if arguments.quiet else logging.DEBUG if arguments.verbose else logging.INFO
    logging.set_verbosity(level)


def _leave_out_absent_tpus():
    """Keeps JAX from looking for TPUs where libtpu is installed for `plan` alone: minutes, and pages of lines."""
    installed = importlib.util.find_spec
    if "JAX_PLATFORMS" in os.environ or installed("libtpu") is None:
        return
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        has_gpus = any(installed(f"jax_cuda{version}_plugin") for version in (12, 13)) and os.path.exists(
            "/dev/nvidia0"
        )
        os.environ["JAX_PLATFORMS"] = "cuda,cpu" if has_gpus else "cpu"


def _is_ours(record):
    """Whether a line of the log is one of this package, or a warning: libraries tell much that no user acts on."""
    if record.name == "matplotlib.font_manager":  # that it makes a list of fonts, once a machine
        return False
    return record.levelno >= python_logging.WARNING or record.pathname.startswith(_PACKAGE)


class _Warnings(io.TextIOBase):
    """The standard error of --quiet: of what commands say on their way, warnings and errors alone."""

    def __init__(self, stream):
        self._stream, self._line = stream, ""

    def write(self, text):
        """Passes on whole lines that begin with a warning or an error."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.lower().startswith(("warning", "error")):
                self._stream.write(f"{line}\n")
        return len(text)

    def flush(self):
        """Flushes the stream behind it."""
        self._stream.flush()


def _without_command(argv, prog):
    """Help, version, or what is meant by a word that is no command. Returns: exit status."""
    name = argv[0] if argv else ""
    if name == "--version":
        return _dispatch(["version"], prog)
    if name == "help":
        return _dispatch([*argv[1:2], "--help"], prog)
    if name in ("", "-h", "--help"):
        width = max(map(len, COMMANDS))
        table = "\n".join(f"  {command:{width}}  {summary}" for command, summary in COMMANDS.items())
        text = (
            f"usage: {prog} COMMAND [options]\n\n{_DESCRIPTION}\ncommands ({prog} COMMAND --help tells more):\n{table}"
        )
        print(text, file=sys.stdout if name else sys.stderr)
        return OK if name else WRONG_USE
    near = [_SYNONYMS[name]] if name in _SYNONYMS else difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    meant = f"meant is {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    _say(f"error: {name!r} is no command; {meant} ({prog} --help lists them)")
    return WRONG_USE
