"""Networks: tokens in, logits out."""

from halfstep.model.denoiser import Denoiser, DenoiserConfig

__all__ = ["Denoiser", "DenoiserConfig"]
