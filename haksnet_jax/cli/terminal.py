"""What all commands share on the command line: the parser, lists and bounded numbers, and wrong use in one sentence."""

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable
from typing import Any, NoReturn

from haksnet_jax.cli import foreign

_CONFIG = "--config."
# Those of labels.label_set, which is too heavy to be imported for a help text; a test compares them.
LABEL_FORMATS = "auto, dota, yolo-obb, rolabelimg, labelme, geojson, coco, cvat, label-studio"


class UsageError(Exception):
    """Options that do not go together or are missing, in one sentence: exit status 2."""


class Parser(argparse.ArgumentParser):
    """argparse with one style of help, old spellings of options, and sentences instead of usage lines.

    Args:
      prog: how the command is called, `haksnet predict`.
      description: the command's module docstring, with its examples.
      **more: of argparse.ArgumentParser.
    """

    def __init__(self, prog: str, description: str = "", **more: Any) -> None:
        super().__init__(
            prog=prog,
            description=description.strip(),
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
            **more,
        )

    def add_common(self) -> None:
        """Adds the options of every command; called last, so that the help shows them last."""
        from haksnet_jax.version import __version__

        group = self.add_argument_group("options of every command")
        group.add_argument("-h", "--help", action="help", help="show this help")
        group.add_argument("--version", action="version", version=f"haksnet_jax {__version__}", help="show the version")
        group.add_argument("--quiet", action="store_true", help="warnings, errors and results alone")
        group.add_argument("--verbose", action="store_true", help="say more, and show where an error was raised")

    def format_usage(self) -> str:
        """The required options alone: what else there is stands below."""
        required = [action for action in self._actions if action.required]
        words = [f"{action.option_strings[0]}={_metavar(action)}" for action in required if action.option_strings]
        words += [action.dest for action in required if not action.option_strings]
        return f"usage: {' '.join([self.prog, *words, '[options]'])}\n"

    def format_help(self) -> str:
        """See the base class."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return f"{self.format_usage()}\n{formatter.format_help().strip()}\n"

    def error(self, message: str) -> NoReturn:
        """Wrong use: one sentence, exit status 2."""
        message = re.sub(r"^argument (--[^:]*|[a-z_]+): ", r"\1: ", message)
        self.exit(2, f"error: {message} ({self.prog} --help shows the options)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See the base class. Options may be spelled with underscores; an unknown one is answered with the nearest."""
        known, unknown = self.parse_known_args([*self._respelled(args)], namespace)
        if unknown:
            name, equals, _ = unknown[0].partition("=")
            here = foreign.option(name, self.prog, self._option_string_actions) if equals else None
            if here:
                self.error(f"unexpected argument {unknown[0]!r}; meant is {here}?")
            lists = [one for one in self._actions if one.option_strings and one.nargs in ("+", "*")]
            hint = f"; lists follow their option: {lists[0].option_strings[0]} A B" if lists else ""
            self.error(f"unexpected argument {unknown[0]!r}{hint}")
        return known

    def _respelled(self, args):
        """Yields the arguments with dashes in their options' names; `--config.KEY=VALUE` becomes `--set KEY=VALUE`."""
        options = self._option_string_actions
        args = iter(args)
        for argument in args:
            if argument == "--":
                yield argument
                yield from args
                return
            name, equals, value = argument.partition("=")
            if not re.match(r"--[a-zA-Z]", name):
                yield argument
            elif name.startswith(_CONFIG) and "--set" in options:
                key = name.removeprefix(_CONFIG)
                yield f"--set={key}={value if equals else next(args, '')}"
            else:
                spelled = name if name in options else name.replace("_", "-")
                if spelled not in options:
                    known = [option.lstrip("-") for option in options if option.startswith("--")]
                    near = difflib.get_close_matches(spelled.lstrip("-"), known, n=1, cutoff=0.7)
                    here = foreign.option(name, self.prog, options) or (f"--{near[0]}" if near else None)
                    meant = f"; meant is {here}?" if here else ""
                    self.error(f"unknown option {name}{meant}")
                yield f"{spelled}{equals}{value}"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=min(120, max(60, _columns())))

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return self._metavar_formatter(action, action.dest)(1)[0]
        names = [name for name in action.option_strings if not name.startswith("--no-")]
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"{names[0]}, --no-{names[0][2:]}"
        if action.nargs == 0:
            return ", ".join(names)
        return f"{', '.join(names)}={_metavar(action)}{' ...' if action.nargs in ('+', '*') else ''}"


def _columns():
    try:
        return os.get_terminal_size().columns
    except OSError:  # no terminal
        return 100


def _metavar(action):
    if action.metavar:
        return action.metavar
    if action.choices:
        return "|".join(map(str, action.choices))
    return {int: "N", float: "X"}.get(action.type, getattr(action.type, "metavar", action.dest.upper()))


class _Listed(argparse.Action):
    """Lists by blanks, by commas, or by repeating the option."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        before = [] if before is None or before is self.default else before
        setattr(namespace, self.dest, before + [value for some in values for value in some])


def add_list(parser: argparse._ActionsContainer, name: str, *, kind: Callable[[str], Any] = str, **more: Any) -> None:
    """Adds an option that takes a list: `--scales=0.5,1`, `--scales 0.5 1` or the option repeated.

    Args:
      parser: Parser, or a group of one.
      name: of the option.
      kind: function of one value's text. A comma inside a path that exists does not separate.
      **more: of `add_argument`.
    """

    def split(text):
        if kind is str and os.path.exists(text):
            return [text]
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None

    metavars: dict[Any, str] = {int: "N", float: "X"}
    split.metavar = metavars.get(kind, name.lstrip("-").upper().replace("-", "_"))  # type: ignore[attr-defined]
    parser.add_argument(name, nargs="+", type=split, action=_Listed, **more)


def number(
    low: float, high: float = math.inf, *, whole: bool = False, above: bool = False, hint: str = ""
) -> Callable[[str], float]:
    """The type of an option that takes a number between bounds.

    Args:
      low, high: bounds; both are allowed, but for `low` where `above` says so.
      whole: True for an int.
      above: True where `low` itself is too low.
      hint: more words for the error, such as an example.

    Returns:
      Function of the option's text.
    """
    what = "a whole number" if whole else "a number"
    bound = f"above {low:g}" if above else f"of at least {low:g}"
    what = f"{what} {bound}" + (f" and at most {high:g}" if high < math.inf else "")

    def parse(text):
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not (low < value if above else low <= value) or not value <= high:
            raise argparse.ArgumentTypeError(f"expected {what}{hint and f' ({hint})'}, got {text!r}")
        return value

    parse.metavar = "N" if whole else "X"  # type: ignore[attr-defined]
    return parse
