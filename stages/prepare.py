"""Stage `prepare`: the corpus as packed tokens, its tokenizer and its cloze passages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfstep.run import console
from halfstep.settings import HubSettings, Params, PydocsSettings, StoriesSettings, TextSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from halfstep.data.corpora import Documents


def main(
    params_path: Annotated[Path, typer.Option("--params", help="Composed parameters, read.")] = Path("params.yaml"),
    tokens_path: Annotated[
        Path, typer.Option("--tokens", help="Shards of packed tokens and manifest.json, written.")
    ] = Path("data/tokens"),
    tokenizer_path: Annotated[Path, typer.Option("--tokenizer", help="Tokenizer with the mask token, written.")] = Path(
        "data/tokenizer"
    ),
    cloze_path: Annotated[
        Path, typer.Option("--cloze", help="Cloze passages, written; one empty line if there are none.")
    ] = Path("data/cloze.jsonl"),
) -> None:
    """Turn the corpus into packed tokens.

    Reads the parameters and the corpus they name (built in, local files, or a data set of the hub); writes
    the tokens of the training and the validation documents, the tokenizer, and the cloze passages. Killed, it goes on
    after the last documents whose tokens it had noted.
    """
    from halfstep.data.cloze import check_passage, write_cloze
    from halfstep.data.fits import check_fits, check_paths
    from halfstep.data.inputs import find_input
    from halfstep.data.manifest import MANIFEST_FILE, Manifest
    from halfstep.data.packing import id_type, num_documents_packed, pack_documents, split_documents
    from halfstep.data.scratch import scratch_folder
    from halfstep.data.texts import pack_all
    from halfstep.data.tokenizer import load_tokenizer
    from halfstep.run.device import select_device
    from halfstep.run.files import atomic_path, link_or_copy, write_json
    from halfstep.run.inputs import inputs_of
    from halfstep.run.memory_advice import memory_advice
    from halfstep.run.stage_times import record_stage
    from halfstep.run.work import open_work, stops_at_signals
    from halfstep.settings import load_params

    params = load_params(params_path)
    console.advise_on_memory(memory_advice(params, "prepare"))
    data = params.data
    # Before the long part, which a mistake in them would make vain.
    if params.runtime.device == "cuda" and not params.launch.start_with:
        # What starts the other stages elsewhere may find devices there that are not here.
        select_device(params.runtime.device)
    check_paths(params)
    for _ in cloze_of(params):
        pass
    if not data.tokenizer.source.startswith("train-"):
        given_tokenizer(params)
    with (
        open_work("prepare", params.deciding("seed", "data"), [], inputs_of(params, "prepare", find_input)) as work,
        stops_at_signals(lambda: "prepare: stopped; the same command goes on from there"),
        scratch_folder() as scratch,
    ):
        with open_corpus(params, work.path) as documents:
            is_valid = split_documents(len(documents), data.valid_fraction, seed=params.seed)
            if not (work.path / "tokenizer").is_dir():
                with atomic_path(work.path / "tokenizer") as new_tokenizer:
                    make_tokenizer(params, documents, ~is_valid).save_pretrained(new_tokenizer)
            tokenizer = load_tokenizer(work.path / "tokenizer")
            passages = cloze_of(params, lambda text: check_passage(text, tokenizer, data.context_length))
            num_passages = write_cloze(scratch / "cloze.jsonl", passages)
            evaluated = params.evaluate
            pack_all(
                evaluated.likelihood_on,
                tokenizer,
                context_length=data.context_length,
                num_sequences=evaluated.num_likelihood_sequences,
            )
            splits = {}
            # The small part first: it may be too small for what is asked of it.
            for name, is_chosen in (("valid", is_valid), ("train", ~is_valid)):
                total, start = int(is_chosen.sum()), num_documents_packed(work.path, name)
                with console.progress(f"tokenizing {name}", total, unit="document", start=start) as update:
                    splits[name] = pack_documents(
                        documents,
                        is_chosen,
                        tokenizer,
                        work.path,
                        name,
                        context_length=data.context_length,
                        tokens_per_shard=data.tokens_per_shard,
                        num_workers=data.num_workers,
                        on_documents=update,
                    )
                if name == "valid":
                    check_fits(params, num_valid_sequences=splits[name].num_sequences, vocab_size=len(tokenizer))
            manifest = Manifest(
                context_length=data.context_length,
                vocab_size=len(tokenizer),
                dtype=id_type(len(tokenizer)),
                **splits,
            )
            with (
                atomic_path(cloze_path) as new_cloze,
                atomic_path(tokenizer_path) as new_tokenizer,
                atomic_path(tokens_path) as new_tokens,
            ):
                shutil.copyfile(scratch / "cloze.jsonl", new_cloze)
                shutil.copytree(work.path / "tokenizer", new_tokenizer)
                new_tokens.mkdir()
                write_json(new_tokens / MANIFEST_FILE, manifest.model_dump())
                for shard in (*manifest.train.shards, *manifest.valid.shards):
                    link_or_copy(work.path / shard.file, new_tokens / shard.file)
        record_stage("prepare", tokens_path / MANIFEST_FILE)
        work.finish()
    counts = "; ".join(
        f"{name} {split.num_documents} documents, {split.num_tokens} tokens, {split.num_sequences} sequences,"
        f" {len(split.shards)} shards"
        for name, split in sorted(splits.items())
    )
    console.console.print(
        f"{data.source}: {counts}; vocabulary {len(tokenizer)}; {num_passages} cloze passages",
        markup=False,
        soft_wrap=True,
    )


def _paths(data: TextSettings) -> list[str]:
    return [data.path] if isinstance(data.path, str) else list(data.path)


def open_corpus(params: Params, folder: Path) -> Documents:
    """The documents that the parameters name; read into `folder`, or found there."""
    from halfstep.data.corpora import hub_corpus, pydocs_corpus, stories_corpus, text_corpus
    from halfstep.data.scratch import datasets_cache

    data = params.data
    match data:
        case StoriesSettings():
            return stories_corpus(data.num_documents, seed=params.seed, max_documents=data.max_documents, folder=folder)
        case PydocsSettings():
            return pydocs_corpus(max_documents=data.max_documents, folder=folder)
        case TextSettings():
            return text_corpus(
                _paths(data),
                text_column=data.text_column,
                split_on_blank_lines=data.split_on_blank_lines,
                max_documents=data.max_documents,
                folder=folder,
            )
        case HubSettings():
            return hub_corpus(
                data.hub_id,
                config=data.hub_config,
                revision=data.revision,
                split=data.split,
                text_column=data.text_column,
                streaming=data.streaming,
                max_documents=data.max_documents,
                cache=datasets_cache(),
                folder=folder,
            )


def make_tokenizer(params: Params, documents: Documents, is_train: NDArray[np.bool_]) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the training documents, or load it; either has the mask token as its last id."""
    from halfstep.data.packing import chosen_batches
    from halfstep.data.tokenizer import train_bpe_tokenizer, train_word_tokenizer

    settings = params.data.tokenizer
    trainers = {"train-words": train_word_tokenizer, "train-bpe": train_bpe_tokenizer}
    if settings.source not in trainers:
        return given_tokenizer(params)
    assert settings.vocab_size is not None, "settings refuse to train a tokenizer without it"
    texts = (text for _, texts in chosen_batches(documents, is_train) for text in texts if text)
    return trainers[settings.source](texts, settings.vocab_size)


def given_tokenizer(params: Params) -> PreTrainedTokenizerFast:
    """The tokenizer that the parameters name, with the mask token as its last id."""
    from halfstep.data.tokenizer import load_tokenizer, with_mask_token

    settings = params.data.tokenizer
    return with_mask_token(load_tokenizer(settings.source, settings.revision))


def cloze_of(params: Params, check: Callable[[str], object] | None = None) -> Iterable[str]:
    """The passages that the parameters name, each checked, or else those that the corpus brings, or none."""
    from halfstep.data.cloze import load_cloze, split_passage
    from halfstep.data.scratch import datasets_cache
    from halfstep.data.stories import cloze_passages

    if params.data.cloze is not None:
        return load_cloze(params.data.cloze, cache=datasets_cache(), check=check or split_passage)
    if isinstance(params.data, StoriesSettings):
        return cloze_passages(params.data.num_cloze, params.seed)
    return ()


if __name__ == "__main__":
    console.run(main)
