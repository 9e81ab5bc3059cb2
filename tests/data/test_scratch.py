"""The scratch folder: gone afterwards, and killed commands' folders are swept, living ones are not."""

from pathlib import Path

import pytest

from halfstep.data.scratch import datasets_cache, scratch_folder


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return datasets_cache() / "scratch"


def folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()]


def test_folder_goes_with_its_block_also_on_an_error(root: Path) -> None:
    def fail() -> None:
        with scratch_folder() as scratch:
            (scratch / "file").write_text("x")
            assert folders(root) == [scratch]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert folders(root) == []


def test_leftovers_are_swept_and_folders_in_use_are_kept(root: Path) -> None:
    (root / "killed").mkdir(parents=True)
    (root / "killed" / "tokens.arrow").write_text("x")
    with scratch_folder() as outer:
        assert folders(root) == [outer]
        with scratch_folder() as inner:
            assert sorted(folders(root)) == sorted([outer, inner])
        assert folders(root) == [outer]
