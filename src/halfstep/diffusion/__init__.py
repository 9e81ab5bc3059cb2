"""The mathematics of masked diffusion: pure functions of tensors, numbers and a generator."""
