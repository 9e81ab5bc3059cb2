"""One thin command per DVC stage: parse, call the library, write."""
