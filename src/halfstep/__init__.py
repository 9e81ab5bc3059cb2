"""halfstep: train, distill and measure fast diffusion language models."""
