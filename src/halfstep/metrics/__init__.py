"""Measured values: estimates with their errors, and the record they are kept in."""
