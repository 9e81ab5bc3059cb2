"""Independent random streams from one seed."""

import hashlib


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed for one use of randomness: different uses, indices or steps get unrelated streams.

    Args:
        seed: the seed in the parameters.
        parts: what the randomness is for, such as ("pretrain", step).
    Returns:
        an integer in [0, 2^63), the same on every machine.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
