"""Texts of any source, as documents, as token ids and as cloze passages."""
