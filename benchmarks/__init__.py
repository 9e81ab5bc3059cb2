"""How fast, and in how much memory: our computation beside the published one, in one process."""
