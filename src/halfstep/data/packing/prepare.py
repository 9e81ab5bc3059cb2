"""A corpus as packed tokens, with its tokenizer and its cloze passages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from halfstep.data.corpora import CORPORA
from halfstep.data.packing.documents import Documents
from halfstep.data.packing.shards import chosen_batches, num_documents_packed, pack_documents, split_documents
from halfstep.data.texts.cloze import check_passage, passages_of, write_cloze
from halfstep.data.texts.encoding import id_type
from halfstep.data.texts.puzzles import prompts_of
from halfstep.data.texts.rows import pack_all
from halfstep.data.tokenizer import load_tokenizer, make_tokenizer, vocab_size_of
from halfstep.data.tokens.manifest import MANIFEST_FILE, Manifest
from halfstep.run.console import console, progress
from halfstep.run.files import atomic_path, link_or_copy, write_json
from halfstep.run.fits import check_fits, check_paths
from halfstep.settings import Params
from halfstep.settings.plugins import plugin_module

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast


def check_sources(params: Params) -> None:
    """Look at what the parameters name beside the corpus, before the long part, which a mistake would make vain.

    Raises:
        UserError: something is not there, or will not do.
    """
    check_paths(params)
    for _ in passages_of(params.data, params.seed):
        pass
    for num_givens in params.frontier.num_givens:
        prompts_of(params.data, params.seed, 1, num_givens)
    if not params.data.tokenizer.source.startswith("train-"):
        make_tokenizer(params.data.tokenizer, ())


def prepare(documents: Documents, params: Params, folder: Path) -> Manifest:
    """Write a corpus to a folder, as `tokenizer`, `cloze.jsonl` and shards; called again, it goes on after a kill.

    Raises:
        UserError: the parameters ask for more than there is, or for what does not fit together.
    """
    data, texts = params.data, params.evaluate
    is_valid = split_documents(len(documents), data.valid_fraction, seed=params.seed)
    tokenizer = _tokenizer(documents, ~is_valid, params, folder / "tokenizer")
    passages = passages_of(data, params.seed, lambda text: check_passage(text, tokenizer, data.context_length))
    num_passages = write_cloze(folder / "cloze.jsonl", passages)
    pack_all(
        texts.likelihood_on,
        tokenizer,
        context_length=data.context_length,
        num_sequences=texts.num_likelihood_sequences,
    )
    rows_of = getattr(plugin_module(CORPORA, data.source), "rows", None)
    splits = {}
    # The small part first: it may be too small for what is asked of it.
    for name, is_chosen in (("valid", is_valid), ("train", ~is_valid)):
        total, start = int(is_chosen.sum()), num_documents_packed(folder, name)
        with progress(f"tokenizing {name}", total, unit="document", start=start) as update:
            splits[name] = pack_documents(
                documents,
                is_chosen,
                tokenizer,
                folder,
                name,
                context_length=data.context_length,
                tokens_per_shard=data.tokens_per_shard,
                num_workers=data.num_workers,
                on_documents=update,
                rows_of=rows_of,
            )
        if name == "valid":
            check_fits(params, num_valid_sequences=splits[name].num_sequences, vocab_size=vocab_size_of(tokenizer))
    counts = "; ".join(
        f"{name} {split.num_documents} documents, {split.num_tokens} tokens, {split.num_sequences} sequences,"
        f" {len(split.shards)} shards"
        for name, split in sorted(splits.items())
    )
    line = f"{data.source}: {counts}; vocabulary {vocab_size_of(tokenizer)}; {num_passages} cloze passages"
    console.print(line, markup=False, soft_wrap=True)
    num_left_out = sum(split.num_documents - split.num_sequences for split in splits.values()) if rows_of else 0
    if num_left_out:
        line = f"left out: {num_left_out} whose prompt fills data.context_length {data.context_length}"
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    return Manifest(
        context_length=data.context_length,
        vocab_size=vocab_size_of(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        dtype="int32" if rows_of else id_type(vocab_size_of(tokenizer)),
        **splits,
    )


def _tokenizer(
    documents: Documents, is_train: NDArray[np.bool_], params: Params, folder: Path
) -> PreTrainedTokenizerFast:
    if not folder.is_dir():
        texts = (text for _, texts in chosen_batches(documents, is_train) for text in texts if text)
        with atomic_path(folder) as new_folder:
            make_tokenizer(params.data.tokenizer, texts).save_pretrained(new_folder)
    return load_tokenizer(folder)


def publish(folder: Path, manifest: Manifest, tokens_path: Path, tokenizer_path: Path, cloze_path: Path) -> None:
    """Put what `prepare` wrote in its places, each whole or not at all; shards get a second name where they can."""
    with (
        atomic_path(cloze_path) as new_cloze,
        atomic_path(tokenizer_path) as new_tokenizer,
        atomic_path(tokens_path) as new_tokens,
    ):
        shutil.copyfile(folder / "cloze.jsonl", new_cloze)
        shutil.copytree(folder / "tokenizer", new_tokenizer)
        new_tokens.mkdir()
        write_json(new_tokens / MANIFEST_FILE, manifest.model_dump())
        for shard in (*manifest.train.shards, *manifest.valid.shards):
            link_or_copy(folder / shard.file, new_tokens / shard.file)
