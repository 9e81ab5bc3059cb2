"""How much of a batch the noise leaves to compute, on average: closed forms under the log-linear schedule."""


def masked_share(epsilon: float, min_time: float) -> float:
    """Share of the positions that are masked, for times evenly spread over [min_time, 1].

    Args:
        epsilon: of the schedule: a position is masked at time t with probability (1 - epsilon) t.
        min_time: smallest time.
    """
    return (1 - epsilon) * (1 + min_time) / 2


def teacher_shares(
    *, dt: float, num_teacher_steps: int, length: int, epsilon: float, min_time: float
) -> list[tuple[float, float]]:
    """What each step of a teacher computes, for times evenly spread over [min_time, 1].

    Args:
        dt: time one teacher step covers.
        num_teacher_steps: steps of the teacher; the last one takes all that is still masked.
        length: positions of a sequence.
        epsilon, min_time: as in `masked_share`.
    Returns:
        for each step (share of the sequences that it evaluates, those in which anything unmasks; share of the
        positions that unmask in it).
    """
    rate = 1 - epsilon
    shares = []
    for i in range(num_teacher_steps):
        # A position unmasks in this step with probability rate * (t - start), but no more than rate * width.
        start, width = i * dt, dt if i < num_teacher_steps - 1 else 1.0
        bend = min(start + width, 1.0)
        first, last = max(start, min_time), max(bend, min_time)
        if first >= 1:
            shares.append((0.0, 0.0))
            continue
        rising = ((last - start) ** 2 - (first - start) ** 2) / 2 * rate
        flat = (1 - last) * rate * width
        n = length + 1
        nothing_rising = ((1 - rate * (first - start)) ** n - (1 - rate * (last - start)) ** n) / (rate * n)
        nothing_flat = (1 - last) * (1 - rate * width) ** length
        evaluated = (1 - first) - nothing_rising - nothing_flat
        shares.append((evaluated / (1 - min_time), (rising + flat) / (1 - min_time)))
    return shares


def expected_evaluations(num_steps: int, num_masked: int) -> float:
    """Network evaluations of one sample: the denoising steps in which at least one of its positions unmasks.

    Args:
        num_steps: denoising steps, each equally likely for each position.
        num_masked: positions to fill.
    """
    return num_steps * (1 - (1 - 1 / num_steps) ** num_masked)
