import os
import stat

import pytest

from peft_reprogram.atomic import filling, replacing


def contents(folder) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "file.json"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with replacing(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert contents(tmp_path) == {"new/file.json": "two"}


def test_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").touch()
    with replacing(tmp_path / "file"):
        pass
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("other", "file")}
    assert len(modes) == 1


def test_interrupted_file_leaves_the_old_one(tmp_path):
    (tmp_path / "file").write_text("old")

    def interrupted():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"file": "old"}


def test_folder_replaces_its_files_and_keeps_others(tmp_path):
    for name in ("a", "b", "part/old", "own"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("old")
    with filling(tmp_path / "run", last="a") as folder:
        (folder / "part").mkdir()
        for name in ("a", "b", "part/new"):
            (folder / name).write_text("new")
        assert (tmp_path / "run/a").read_text() == "old"
    assert contents(tmp_path / "run") == {"a": "new", "b": "new", "part/new": "new", "own": "old"}
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("before", [None, "old"])
def test_interrupted_folder_leaves_no_trace(tmp_path, before):
    if before:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/a").write_text(before)

    def interrupted():
        with filling(tmp_path / "run", last="a") as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == ({"run/a": before} if before else {})
    assert (tmp_path / "run").exists() == bool(before)


def test_the_last_file_vouches_for_the_others(tmp_path, monkeypatch):
    """Whenever the moves break off, the last file is not there beside files of another save."""
    (tmp_path / "run").mkdir()
    for name in ("mark", "weights", "words"):
        (tmp_path / "run" / name).write_text("old")
    moved, replace = [], os.replace

    def fails_at_words(source, target):
        moved.append(os.path.basename(target))
        if moved[-1] == "words":
            raise OSError("the disk is full")
        replace(source, target)

    def save():
        with filling(tmp_path / "run", last="mark") as folder:
            for name in ("mark", "weights", "words"):
                (folder / name).write_text("new")

    monkeypatch.setattr("os.replace", fails_at_words)
    with pytest.raises(OSError, match="disk is full"):
        save()
    assert moved == ["weights", "words"]
    assert contents(tmp_path / "run") == {"weights": "new", "words": "old"}
