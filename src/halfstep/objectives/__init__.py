"""What a network is trained to do: one file for each loss."""

OBJECTIVES = __name__
SHARED = ("autoregressive", "base", "distillation", "heads", "masked", "teacher")
"""Files that are no objectives of a round."""
