"""Samples: how batches are drawn, and the table they are kept in."""
