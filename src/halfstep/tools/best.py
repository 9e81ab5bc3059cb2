"""The sampler that makes the most of some evaluations of a model, as far as its project has measured it."""

from pathlib import Path

from halfstep.metrics.frontier import at_entropy, best_within, read_curves
from halfstep.metrics.record import read_record
from halfstep.samplers.sampler import Sampler, sampler_in, sampler_of


def best_sampler(model: Path, num_evaluations: int) -> tuple[Sampler, float]:
    """(sampler, temperature) with the lowest perplexity at the entropy of the validation text or above.

    Args:
        model: a denoiser's folder `models/NAME` in a project. Where its frontier was not measured, or nothing so cheap
            was, the surest positions are written first, at temperature 1.
        num_evaluations: equivalent evaluations at most.
    Raises:
        UserError: what was measured cannot be read.
    """
    folder = model.resolve()
    root, name = folder.parent.parent, folder.name
    frontier, record = root / "frontier" / name, root / "metrics" / f"{name}.json"
    if frontier.is_dir() and record.is_file() and (entropy := read_record(record).get("data_entropy")):
        ways = [at_entropy(curve, entropy.value, num_resamples=1, seed=0) for curve in read_curves(frontier)]
        if best := best_within(ways, num_evaluations):
            assert best.temperature is not None
            return sampler_in(best.sampler, best.setting, str(frontier)), best.temperature
    values = {"num_steps": num_evaluations, "score": "entropy", "noise": 0.0, "counts": "cosine"}
    return sampler_of("ordered", values, "--evaluations"), 1.0
