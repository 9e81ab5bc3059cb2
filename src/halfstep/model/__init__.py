"""Networks: tokens in, logits out."""
