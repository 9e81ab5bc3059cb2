"""How a command runs: console, files, unfinished work, processes, faults. Nothing here decides a result."""
