"""Every public function and method of these rooms has a type for each of its arguments and for what it returns."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "haksnet_jax"
ROOMS = (
    "files.py", "json_files.py", "npz.py", "structures.py", "target.py", "geometry", "kernels", "models", "distributed",
    "images", "labels", "training", "pipeline", "tasks", "inference",
    "weights", "results", "cli", "main.py", "demo", "__init__.py", "preparation", "tools",
)  # fmt: skip


def _without_types(body, prefix=""):
    """Names of what lacks a type, in classes too; what is inside a function is its own matter."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _without_types(node.body, f"{node.name}.")
        is_public = isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name.endswith("__"))
        if not is_public:
            continue
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in filter(None, every):
            if argument.annotation is None and not (prefix and argument.arg in ("self", "cls")):
                yield f"{prefix}{node.name}({argument.arg})"
        if node.returns is None:
            yield f"{prefix}{node.name} ->"


@pytest.mark.parametrize("room", ROOMS)
def test_public_functions_have_types(room):
    path = PACKAGE / room
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    assert files
    found = {str(file.relative_to(PACKAGE)): list(_without_types(ast.parse(file.read_text()).body)) for file in files}
    assert not {file: names for file, names in found.items() if names}


def test_what_lacks_a_type_is_found():
    source = (
        "def full(a: int, *b: str, **c: str) -> None: ...\n"
        "def half(a, b: int): ...\ndef _own(a): ...\n"
        "class Thing:\n    def __init__(self, size): ...\n    def area(self) -> int: ...\n"
        "class _Own:\n    def f(self): ...\n"
    )
    found = list(_without_types(ast.parse(source).body))
    assert found == ["half(a)", "half ->", "Thing.__init__(size)", "Thing.__init__ ->"]
