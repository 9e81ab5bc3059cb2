"""Documents out of data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator

from halfstep.data.texts.reading import ROWS_PER_READ, check_column, check_strings
from halfstep.run.errors import UserError, one_line
from halfstep.run.faults import storage_fault
from halfstep.run.files import project_root
from halfstep.run.retries import with_retries


def read_hub(
    hub_id: str, *, config: str | None, revision: str | None, split: str, text_column: str, streaming: bool
) -> Iterator[str | None]:
    """Yield one column of a data set of the Hugging Face hub.

    Args:
        streaming: fetch as many documents as are used, a few at a time, instead of the whole data set into the cache.
    Raises:
        UserError: the data set cannot be loaded, or has no such column of strings.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    source = f"data set {hub_id}"
    # Stays between commands; deleting it costs a download.
    cache = str(project_root() / ".halfstep" / "cache" / "datasets")
    try:
        rows = with_retries(
            source,
            lambda: load_dataset(hub_id, config, split=split, revision=revision, streaming=streaming, cache_dir=cache),
        )
        if streaming:
            for row in rows:
                check_column(row, text_column, source)
                if row[text_column] is not None and not isinstance(row[text_column], str):
                    check_strings(type(row[text_column]).__name__, text_column, source)
                yield row[text_column]
            return
        check_column(rows.column_names, text_column, source)
        check_strings(rows.features[text_column].dtype, text_column, source)
        for table in rows.select_columns([text_column]).with_format("arrow").iter(ROWS_PER_READ):
            yield from table[text_column].to_pylist()
    except (OSError, ValueError, DatasetsError) as error:
        if storage_fault(error):
            raise
        raise UserError(
            f"{source} of the hub cannot be loaded ({one_line(error)}); without network, take local files, as with"
            " -S data=text -S data.path=FILES, or -S data.cloze=FILE"
        ) from None
