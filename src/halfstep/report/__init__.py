"""From the metrics files to figures, one page, and the table of rounds."""
