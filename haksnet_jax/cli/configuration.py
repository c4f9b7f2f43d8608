"""From --config and --set to a configuration: which file is meant, and values of the types of those that are there."""

import argparse
import ast
import difflib
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from haksnet_jax.cli import foreign, terminal
from haksnet_jax.errors import UserError

if TYPE_CHECKING:
    import ml_collections

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"

# What a setting may be, where it is one of few words.
_CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "data.kind": ("folder", "tfds", "scenes"),
    "optimizer.schedule": ("step", "cosine"),
    "optimizer.lr_scaling": ("linear", "sqrt", "none"),
}
_MEANT = {"bf16": "bfloat16", "fp32": "float32", "f32": "float32", "half": "bfloat16", "float16": "bfloat16"}


def add_arguments(parser: terminal.Parser) -> None:
    """Adds --config and --set. Args: parser, terminal.Parser."""
    parser.add_argument("file", nargs="?", metavar="CONFIG", help="the same as --config=CONFIG")
    parser.add_argument("--config", help="a configuration of the package by its name, or a file of your own")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="other values: --set data.root=DIR optimizer.learning_rate=2e-4 (or --config.data.root=DIR)",
    )


def of(arguments: argparse.Namespace) -> "ml_collections.ConfigDict":
    """The configuration that a command's options name.

    Args:
      arguments: with `config`, `file` and `set`.

    Returns:
      A locked ConfigDict.

    Raises:
      terminal.UsageError: none is named.
      UserError: there is none of this name, or a value does not fit.
    """
    name = arguments.config or arguments.file
    if not name or (arguments.config and arguments.file):
        raise terminal.UsageError(
            "expected one configuration, --config=NAME or --config=FILE.py, such as --config=demo; "
            f"there are {', '.join(names())}"
        )
    if "=" in name and not os.path.exists(name):
        raise terminal.UsageError(
            f"unexpected argument {name!r}; values follow --set: --set data.root=DIR num_epochs=12"
        )
    config = load(name)
    for assignment in arguments.set:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise terminal.UsageError(f"--set: expected KEY=VALUE, got {assignment!r}")
        assign(config, key, value)
    check(config)
    return config


def names() -> list[str]:
    """Names of the configurations that belong to the package."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def find(name: str) -> pathlib.Path:
    """The file that is meant by a name.

    Args:
      name: `ssdd`, a path, or a path as of a checkout (`configs/ssdd.py`), which works from any folder.

    Raises:
      UserError: there is none.
    """
    path = pathlib.Path(name)
    is_name = path.name == name and not path.suffix
    if not is_name and path.is_file():
        return path
    of_package = FOLDER / f"{path.stem}.py"
    if path.suffix in ("", ".py") and path.parent in (pathlib.Path(), pathlib.Path("configs")) and of_package.is_file():
        return of_package
    near = difflib.get_close_matches(path.stem, names(), n=2, cutoff=0.6)
    meant = f"; meant is {' or '.join(near)}?" if near else ""
    looked = "" if is_name else f", looked for from {os.getcwd()}"
    raise UserError(
        f"--config={name}: there is no such file{looked}, and no configuration of this name{meant or ';'} there are "
        f"{', '.join(names())}"
    )


def load(name: str) -> "ml_collections.ConfigDict":
    """The configuration of a file, its values as they stand there.

    Args:
      name: see `find`.

    Returns:
      A locked ConfigDict.

    Raises:
      UserError: there is no such file, or it is none that makes a configuration.
    """
    path = find(name)
    _let_configs_be_imported()
    spec = importlib.util.spec_from_file_location(f"haksnet_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(
            f"--config={name}: expected a name such as folder, or a Python file, FILE.py; the folder of a data set is "
            "named by --set data.root=DIR"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config={name}: line {error.lineno} is no Python: {error.msg}") from error
    except ImportError as error:
        raise UserError(f"--config={name}: {error}") from error
    except Exception as error:  # (what the user wrote raises what it likes)
        raise _raised(name, path, error) from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={name}: expected a function get_config() in it, as in {FOLDER / 'folder.py'}")
    try:
        return module.get_config().lock()
    except Exception as error:
        raise _raised(name, path, error) from error


def _raised(name, path, error):
    """UserError that says where a configuration failed. Args: name, as given; path, of its file; error."""
    if isinstance(error, UserError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == os.path.realpath(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return UserError(f"--config={name}: it fails{where} ({type(error).__name__}: {error}); mend it there")


def _let_configs_be_imported():
    """Lets a configuration say `from configs import dota_ss_t`, wherever its file lies and the program was started."""
    if "configs" not in sys.modules:
        package = types.ModuleType("configs")
        package.__path__ = [str(FOLDER)]
        sys.modules["configs"] = package


def paths(config: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings, those of groups too."""
    for key, value in config.items():
        yield before + key
        if hasattr(value, "items"):
            yield from paths(value, f"{before}{key}.")


def assign(config: "ml_collections.ConfigDict", key: str, text: str) -> None:
    """Sets one value; it gets the type of the one that is there.

    Args:
      config: ConfigDict, changed in place.
      key: dotted name.
      text: the value as typed.

    Raises:
      UserError: there is no such setting, or the text is no value of its type.
    """
    if not key:
        raise UserError(f"--set: expected KEY=VALUE, got '={text}'")
    *groups, last = key.split(".")
    group: Any = config
    for name in groups:
        group = group.get(name) if hasattr(group, "items") and name in group else None
    if not hasattr(group, "items") or last not in group:
        raise UserError(f"{key}: there is no such setting; {_nearest(config, key)}")
    present = group[last]
    if hasattr(present, "items"):
        raise UserError(f"{key}: is a group of settings: {', '.join(f'{key}.{name}' for name in present)}")
    with config.unlocked():
        group[last] = parse(key, text, present)


def _nearest(config, key):
    known = list(paths(config))
    elsewhere = foreign.setting(key)
    if elsewhere in known:
        return f"meant is {elsewhere}?"
    last = key.rpartition(".")[2]

    def likeness(one):
        whole, part = (
            difflib.SequenceMatcher(None, *pair).ratio() for pair in ((one, key), (one.split(".")[-1], last))
        )
        return max(whole, part)

    ranked = sorted(known, key=likeness, reverse=True)
    near = [one for one in ranked if likeness(one) > max(0.6, likeness(ranked[0]) - 0.05)][:3]
    return f"meant is {' or '.join(near)}?" if near else f"the groups are {', '.join(config)}"


def parse(key: str, text: str, present: Any) -> Any:
    """The value of a text, of the type of another value.

    Args:
      key: name of the setting, for errors.
      text: as typed: `2e-4`, `true`, `(256, 256)`, `plane,ship`.
      present: the value that it replaces; None takes any.

    Raises:
      UserError: the text is no such value.
    """
    if isinstance(present, bool):
        return _boolean(key, text)
    if isinstance(present, (int, float)):
        return _number(key, text, whole=isinstance(present, int))
    if isinstance(present, str):
        return text
    if isinstance(present, (tuple, list)):
        return _sequence(key, text, present)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _boolean(key, text):
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.strip().lower() not in known:
        raise UserError(f"{key}: expected true or false, got {text!r}")
    return known[text.strip().lower()]


def _number(key, text, *, whole):
    try:
        value = float(text)
        if whole:
            if value != int(value):
                raise ValueError
            value = int(text) if text.strip().lstrip("+-").replace("_", "").isdigit() else int(value)
    except (ValueError, OverflowError):
        raise UserError(f"{key}: expected a {'whole ' if whole else ''}number, got {text!r}") from None
    return value


def _sequence(key, text, present):
    """`(256, 256)`, `256,256` or, of words, `plane,ship`: as a tuple, its values of the type of those present."""
    kind = type(present[0]) if len(present) else None
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
    values = list(values) if isinstance(values, (tuple, list)) else [values]
    if kind in (int, float):
        values = [_number(f"{key}", str(value), whole=kind is int) for value in values]
        if len(values) != len(present) and key.rpartition(".")[2] in _LENGTHS:
            example = tuple(present) or (256, 256)
            raise UserError(
                f"{key}: expected {len(example)} {_LENGTHS[key.rpartition('.')[2]]}, such as '{example}', got {text!r}"
            )
    elif kind is str or kind is None:
        values = [str(value) if kind is str else value for value in values]
    return type(present)(values)


_LENGTHS = {
    "image_size": "numbers, rows and columns in pixels",
    "scale_range": "numbers, the least and the largest factor",
    "gain_range": "numbers, the least and the largest factor",
    "crop_scale": "numbers, the least and the largest share",
    "crop_ratio": "numbers, the least and the largest ratio",
    "betas": "numbers",
    "flip_probabilities": "numbers, a probability for each direction",
}


def check(config: "ml_collections.ConfigDict") -> None:
    """Finds values that can be told to be wrong without data and devices.

    Args:
      config: ConfigDict.

    Raises:
      UserError: names the key.
    """
    for key, choices in _CHOICES.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if hasattr(value, "get") else None
        if value is not None and value not in choices:
            near = [_MEANT[value]] if value in _MEANT else difflib.get_close_matches(str(value), choices, n=1)
            meant = f"; meant is {near[0]}?" if near and near[0] in choices else ""
            raise UserError(f"{key}: expected {' or '.join(choices)}, got {value!r}{meant}")
