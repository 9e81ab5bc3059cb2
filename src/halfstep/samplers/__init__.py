"""From masks to text: one file for each way to write."""
