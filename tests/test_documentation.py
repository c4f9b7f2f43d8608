"""README and docs: every command can be typed as printed, every link leads somewhere, the reference is of today."""

import pathlib
import re
import shlex
import sys

import pytest

from haksnet_jax.cli import configuration, program, reference
from haksnet_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "data/README.md", "examples/README.md")
    if (ROOT / name).exists()
] + sorted((ROOT / "docs").glob("*.md"))
_DOORS = {
    "haksnet_jax.main": "train",
    "haksnet_jax.convert": "convert",
    "data.validate": "validate",
    "data.dota.split": "split",
    "data.dota.build": "build",
}
# Values that stand for what a reader has; a command with one of them is parsed with a value that fits.
_PLACEHOLDERS = {"N": "3", "M": "2", "I": "0", "STEP": "100"}


def commands(text):
    """Yields the commands in a page's blocks of code: lists of words after the program's name."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    fenced = False
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
            continue
        if not fenced and (not line.startswith("    ") or "`" in line):  # no block of code, or text in a list
            continue
        for part in re.split(r"&&|\|\||;|\$ ", line):
            words = _words(part)
            while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("srun", "nohup", "nice", "time")):
                words = words[1:]
            if not words:
                continue
            if words[0] in ("haksnet", ".venv/bin/haksnet"):
                yield words[1:]
            elif words[0].endswith("python") and "-m" in words[:3]:
                module, *rest = words[words.index("-m") + 1 :]
                if module == "haksnet_jax":
                    yield rest
                elif module in _DOORS:
                    yield [_DOORS[module], *rest]
                elif module.startswith("data."):
                    yield ["build", module.removeprefix("data."), *rest]


def _words(line):
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote that another part of the line closes
        return []
    return [word.strip("[]") for word in words if word not in ("&", "...", "[...]")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_is_understood(path, capsys):
    for words in commands(path.read_text()):
        if not words or not re.fullmatch(r"[a-z]+", words[0]):  # `haksnet --help`, `haksnet COMMAND`
            continue
        words = [re.sub(r"=([A-Z]+)$", lambda m: f"={_PLACEHOLDERS.get(m[1], m[1])}", word) for word in words]
        words = words[: next((i for i, word in enumerate(words) if word in (">", "|", "2>&1", "||")), None)]
        assert words[0] in program.COMMANDS, words
        try:
            arguments = program.parser_of(words[0]).parse_args(words[1:])
        except SystemExit as end:
            raise AssertionError(f"haksnet {' '.join(words)}: {capsys.readouterr().err}") from end
        name = getattr(arguments, "config", None)
        if name and (name in configuration.names() or name.startswith("configs/")):
            try:
                configuration.of(arguments)
            except UserError as error:
                raise AssertionError(f"haksnet {' '.join(words)}: {error}") from error


def _anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = path if not name else (path.parent / name).resolve()
        assert other.exists(), f"{path.name}: {target}"
        if anchor and other.suffix == ".md":
            assert anchor in _anchors(other.read_text()), f"{path.name}: {target}"


def test_the_reference_is_of_today():
    assert reference.PAGE.read_text() == reference.page(), f"{sys.executable} -m haksnet_jax.cli.reference"


def test_every_command_has_a_page_that_uses_it():
    used = {words[0] for path in PAGES for words in commands(path.read_text()) if words}
    assert set(program.COMMANDS) - {"version", "info"} <= used


def test_every_page_is_in_the_site():
    nav = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert nav == {path.name for path in (ROOT / "docs").glob("*.md")}
