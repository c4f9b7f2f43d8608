import os

import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_an_image_is_one_by_its_ending_in_any_case_and_hidden_files_are_none(tmp_path):
    touch(tmp_path, "a.png", "b.TIF", "c.Jpeg", "d.jpg.txt", "._a.png", ".e.png", "f", "g.bmp", "h.tiff", "i.gif")
    (tmp_path / "folder.png").mkdir()
    names = [path.name for path in image_files.list_images(tmp_path)]
    assert names == ["a.png", "b.TIF", "c.Jpeg", "g.bmp", "h.tiff"]
    assert list(image_files.images_in(tmp_path)) == ["a", "b", "c", "g", "h"]
    touch(tmp_path, "a.tif")
    with pytest.raises(UserError, match=r"a\.png and .*a\.tif have the same name"):
        image_files.images_in(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=folder.name):
            image_files.list_images(folder)


def found(pattern, folder):
    return sorted(str(path.relative_to(folder)) for path in image_files.matching(folder / pattern))


def test_patterns_name_files_at_any_depth(tmp_path):
    touch(
        tmp_path, "a.tif", "b.png", "x/c.tif", "x/y/d.tif", "x/y/.e.tif", "z1/f.tif", "z2/g.tif", ".h/i.tif", "[j].tif"
    )
    assert found("*.tif", tmp_path) == ["[j].tif", "a.tif"]
    assert found("**/*.tif", tmp_path) == ["[j].tif", "a.tif", "x/c.tif", "x/y/d.tif", "z1/f.tif", "z2/g.tif"]
    assert found("x/**/*.tif", tmp_path) == ["x/c.tif", "x/y/d.tif"]
    assert found("z[12]/?.tif", tmp_path) == ["z1/f.tif", "z2/g.tif"]
    assert found("x/y/.*.tif", tmp_path) == ["x/y/.e.tif"]
    assert found("x/**", tmp_path) == ["x/c.tif", "x/y/d.tif"]
    assert found("nowhere/*.tif", tmp_path) == found("*.gif", tmp_path) == []


def test_links_in_a_circle_end_and_give_each_file_once(tmp_path):
    touch(tmp_path, "a.png", "deep/b.png")
    for name in ("one", "two", "deep/three"):
        os.symlink(tmp_path, tmp_path / name)
    os.symlink(tmp_path / "a.png", tmp_path / "again.png")
    os.symlink("broken", tmp_path / "broken.png")
    assert len(image_files.matching(tmp_path / "**/*.png")) == 2
    assert found("deep/*.png", tmp_path) == ["deep/b.png"]


def test_a_relative_pattern_is_of_the_folder_at_hand(tmp_path, monkeypatch):
    touch(tmp_path, "x/a.png")
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in image_files.matching("**/*.png")] == ["x/a.png"]
