"""Which files a path of the user means."""

from pathlib import Path
from typing import Any

import pytest

from halfstep.data.texts.reading import read_texts
from halfstep.run.errors import UserError
from halfstep.run.finding import find_files


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def test_paths_folders_and_globs_are_sorted_and_each_file_comes_once(root: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.jsonl", "sub/notes.md"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")

    def names(*paths: str) -> list[str]:
        return [str(file.relative_to(root)) for file in find_files(paths)]

    assert names(".") == ["a.txt", "b.txt", "sub/c.txt", "sub/d.jsonl"]
    assert names("*.txt") == ["a.txt", "b.txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "sub/c.txt"]
    assert names("sub", "b.txt", "*.txt") == ["sub/c.txt", "sub/d.jsonl", "b.txt", "a.txt"]
    assert names(str(root / "a.txt")) == ["a.txt"]
    assert names("sub/*") == ["sub/c.txt", "sub/d.jsonl"]
    with pytest.raises(UserError, match=r"'sub/notes\.md': .*notes\.md is none of \.txt, \.jsonl, \.parquet"):
        names("sub/notes.md")
    with pytest.raises(UserError, match=r"'sub/\*\.md' matches no file .*left out: 1 \.md \(sub/notes\.md\)"):
        names("sub/*.md")
    with pytest.raises(UserError, match=r"data\.path 'none/\*\.txt' matches no file"):
        names("none/*.txt")


FOLDER = (
    "a.txt",
    "B.TXT",
    "c.Parquet",
    "sub/d.JsonL",
    "sub/deep/e.txt",
    ".hidden.txt",
    ".git/config.txt",
    "sub/.ipynb_checkpoints/d-checkpoint.txt",
    "__MACOSX/sub/a.txt",
    "._a.txt",
    "notes.md",
    "old.txt.gz",
    "backup.txt~",
    "LICENSE",
)


def make_folder(folder: Path) -> None:
    for name in FOLDER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_of_a_folder_hidden_files_are_left_out_and_suffixes_count_in_any_case(root: Path) -> None:
    make_folder(root / "my")
    read = ["B.TXT", "a.txt", "c.Parquet", "sub/d.JsonL", "sub/deep/e.txt"]
    assert [str(file.relative_to(root / "my")) for file in find_files(["my"])] == read
    assert [str(file.relative_to(root / "my")) for file in find_files(["my/**/*"])] == read
    # A folder whose own path is hidden, or that is hidden itself, was named.
    make_folder(root / ".cache/my")
    assert len(find_files([".cache/my"])) == len(find_files([".cache/my/**"])) == len(read)
    assert [file.name for file in find_files(["my/__MACOSX", "my/__MACOSX/**/*.txt"])] == ["a.txt"]
    assert [file.name for file in find_files(["my/.git", "my/.git/*.txt"])] == ["config.txt"]
    assert [file.name for file in find_files(["my/.*.txt"])] == ["._a.txt", ".hidden.txt"]
    # A hidden file that is named is read.
    files = find_files(["my/.hidden.txt", "my/sub/.ipynb_checkpoints/d-checkpoint.txt", "my/sub"])
    assert [file.name for file in files] == [".hidden.txt", "d-checkpoint.txt", "d.JsonL", "e.txt"]


def test_a_file_under_several_names_is_read_once(root: Path) -> None:
    (root / "my").mkdir()
    (root / "my/a.txt").write_text("x")
    (root / "my/b.txt").symlink_to("a.txt")
    (root / "my/c.txt").hardlink_to(root / "my/a.txt")
    (root / "linked").symlink_to("my")
    assert find_files(["my/a.txt", "my", "my/../my/a.txt", "my/*.txt", "linked"]) == [root / "my/a.txt"]
    # The name that was given says what a file holds, not the one that a link leads to.
    (root / "blob").write_text("x")
    (root / "d.txt").symlink_to("blob")
    assert find_files(["d.txt"]) == [root / "d.txt"]


def test_one_line_says_what_is_read_and_what_is_left_out(root: Path, capfd: Any) -> None:
    make_folder(root / "my")
    (root / "my/c.Parquet").unlink()
    (root / "my/sub/d.JsonL").write_text('{"text": "x"}')
    (root / "my/broken.txt").symlink_to("nowhere")
    (root / "my/link.txt").symlink_to("a.txt")
    (root / "my/more").symlink_to("sub")
    assert list(read_texts(["my"], "text", 0)) == ["x"] * 4
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("my: reading 3 .txt, 1 .jsonl; left out: ")
    assert set(line.partition("left out: ")[2].replace("), ", ")|").split("|")) == {
        "5 hidden (my/._a.txt, my/.git, my/.hidden.txt, ...)",
        "1 linked folders (my/more)",
        "1 broken links or devices (my/broken.txt)",
        "1 .md (my/notes.md)",
        "1 .gz (my/old.txt.gz)",
        "1 .txt~ (my/backup.txt~)",
        "1 without a suffix (my/LICENSE)",
        "1 known by another name (my/link.txt)",
    }
    assert list(read_texts(["my/a.txt"], "text", 0)) == ["x"]
    assert capfd.readouterr().err == "my/a.txt: reading 1 .txt\n"


def test_a_project_whose_path_has_signs_of_a_glob_finds_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "[1]").mkdir()
    (tmp_path / "[1]/a.txt").write_text("x")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "[1]"))
    assert find_files(["*.txt"]) == [tmp_path / "[1]/a.txt"]
