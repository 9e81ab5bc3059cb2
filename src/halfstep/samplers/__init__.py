"""From masks to text: one file for each way to write."""

SAMPLERS = __name__
SHARED = ("adjust", "autoregressive", "base", "choices", "joint", "sampler")
"""Files that are no samplers of masked models."""
