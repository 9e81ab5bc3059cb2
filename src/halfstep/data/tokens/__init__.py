"""What every stage reads of the corpus: packed tokens, their manifest, and the seeds under which they are drawn."""
