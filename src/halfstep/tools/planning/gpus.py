"""Processors that a run may be planned for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says: operations per second are in bf16, dense; memory is as sold, and a driver keeps some."""

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: int


GPUS = (
    Gpu("A100-40GB", 312e12, 1.555e12, 40 * 10**9),
    Gpu("A100-80GB", 312e12, 2.039e12, 80 * 10**9),
    Gpu("H100-SXM", 989e12, 3.35e12, 80 * 10**9),
    Gpu("H200-SXM", 989e12, 4.8e12, 141 * 10**9),
    Gpu("L40S", 362e12, 0.864e12, 48 * 10**9),
    Gpu("RTX-4090", 165e12, 1.008e12, 24 * 10**9),
)
"""Source: NVIDIA's data sheets of A100 (SXM), H100 (SXM), H200 (SXM) and L40S, tensor-core bf16 without sparsity; RTX
4090: NVIDIA Ada GPU Architecture, Appendix A, bf16 with float32 accumulation."""
