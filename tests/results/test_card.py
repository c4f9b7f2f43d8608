"""Which commit a card names: that of the checkout that runs, and of no repository that it merely lies in."""

import subprocess

import pytest

from haksnet_jax.results.card import code_version


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Runs git in a folder; nothing outside it is asked."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.example")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def run(folder, *arguments):
        return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout

    return run


def _checkout(folder, git, name="haksnet_jax"):
    package = folder / "haksnet_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(f"[project]\nname = '{name}'\n")
    (folder / ".gitignore").write_text("records/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return package


def test_a_checkout_is_named_by_its_commit_and_changed_code_makes_it_dirty(tmp_path, git):
    package = _checkout(tmp_path, git)
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD").strip()
    assert code_version(package) == commit
    for folder in ("records", "mydata"):  # ignored, and not: both are data
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("1")
    assert code_version(package) == commit
    (package / "more.py").write_text("1")
    assert code_version(package) == f"{commit}-dirty"


def test_a_repository_around_an_installed_package_is_not_its_checkout(tmp_path, git):
    _checkout(tmp_path, git, name="theirs")
    installed = tmp_path / ".venv" / "lib" / "site-packages" / "haksnet_jax"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert code_version(installed) == "unknown"
    assert code_version(tmp_path / "haksnet_jax") == "unknown"  # copied into a project of another name


def test_a_package_outside_of_any_repository_has_no_commit(tmp_path, git):
    (tmp_path / "haksnet_jax").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'haksnet_jax'\n")
    assert code_version(tmp_path / "haksnet_jax") == "unknown"
