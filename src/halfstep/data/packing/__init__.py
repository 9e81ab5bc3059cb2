"""What only `prepare` does: a corpus, document by document, into shards of packed tokens."""
