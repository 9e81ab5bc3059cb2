"""From text to batches: corpora, tokenizer, packed tokens, cloze passages."""
