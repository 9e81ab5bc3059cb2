"""The documents of a corpus, as they are kept while it is packed."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from halfstep.data.packing.documents import store_documents
from halfstep.data.texts import encoding
from halfstep.run.errors import UserError


@pytest.mark.parametrize("num_characters", [1, 5, 30, 1000])
def test_documents_are_kept_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_characters: int) -> None:
    monkeypatch.setattr(encoding, "CHARACTERS_PER_BATCH", num_characters)
    texts = ["one", None, "", "four " * 9, "five", "six"]
    documents = store_documents(texts, None, tmp_path)
    assert list(documents) == texts
    assert len(documents) == 6
    sizes = [sum(len(text or "") + 1 for text in batch[:-1]) for _, batch in documents.batches()]
    assert max(sizes) < num_characters
    for start in range(7):
        assert [text for _, batch in documents.batches(start) for text in batch] == texts[start:]


def test_documents_that_are_stored_are_not_read_again(tmp_path: Path) -> None:
    def fail_after(number: int) -> Iterator[str]:
        yield from ["text"] * number
        raise ZeroDivisionError

    for number in (0, 3, 500_000):
        with pytest.raises(ZeroDivisionError):
            store_documents(fail_after(number), None, tmp_path)
    store_documents(["a", "b"], None, tmp_path)
    assert list(store_documents(fail_after(0), None, tmp_path)) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["documents.arrow"]


@pytest.mark.parametrize(("error", "is_kept"), [(None, False), (UserError, False), (KeyboardInterrupt, True)])
def test_documents_are_kept_for_what_was_cut_off(
    tmp_path: Path, error: type[BaseException] | None, is_kept: bool
) -> None:
    with suppress(UserError, KeyboardInterrupt), store_documents(["a"], None, tmp_path):
        if error:
            raise error
    assert (tmp_path / "documents.arrow").exists() == is_kept
