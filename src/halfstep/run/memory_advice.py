"""What helps a stage whose memory does not suffice: parameters, their values now and those to try."""

from halfstep.settings import Params, TrainingSettings

FURTHER = {
    "prepare": "data.max_documents",
    "pretrain": "data.context_length, model.hidden_size, model.num_blocks",
    "baseline": "data.context_length, model.hidden_size, model.num_blocks",
    "distill": "data.context_length, model.hidden_size, model.num_blocks",
    "sample": "sample.continuation_length, data.context_length",
    "evaluate": "evaluate.num_valid_sequences, a smaller evaluate.scorer",
    "latency": "latency.length",
}
"""Parameters that also decide on a stage's memory, and that change its results."""

HAS_FIT_BATCH = ("pretrain", "baseline", "distill", "sample")


def memory_advice(params: Params, stage: str) -> str:
    """How to make a stage need less memory, in one line: first what leaves the results as they are.

    Args:
        params: all parameters.
        stage: prepare, pretrain, baseline, distill, sample, evaluate or latency.
    """
    section = getattr(params, stage, None)
    advice = []
    if isinstance(section, TrainingSettings):
        finer = finer_accumulation(section.batch_size, section.num_accumulation_steps)
        if finer is not None:
            now = section.num_accumulation_steps
            at_once, before = section.batch_size // finer, section.batch_size // now
            advice.append(
                f"-S {stage}.num_accumulation_steps={finer} (now {now}) computes the same batch {at_once} sequences at"
                f" once in place of {before}"
            )
        if section.batch_size > 1:
            half = section.batch_size // 2
            fewer = max(n for n in divisors(half) if n <= section.num_accumulation_steps)
            also = f" -S {stage}.num_accumulation_steps={fewer}" if fewer != section.num_accumulation_steps else ""
            advice.append(f"-S {stage}.batch_size={half}{also} (now {section.batch_size}) halves the batch itself")
    elif section is not None and section.batch_size > 1:
        at_once, what = section.batch_size // 2, "network evaluation" if stage == "latency" else "batch"
        kept = "" if stage == "latency" else " and leaves the results as they are"
        advice.append(f"-S {stage}.batch_size={at_once} (now {section.batch_size}) halves each {what}{kept}")
    elif stage == "prepare" and params.data.num_workers != 1:
        workers = params.data.num_workers
        fewer, of = (1, "all cores") if workers is None else (workers // 2, workers)
        advice.append(f"-S data.num_workers={fewer} (now {of})")
    advice.append(f"{'then' if advice else 'try'} smaller {FURTHER[stage]}")
    if stage in HAS_FIT_BATCH:
        advice.append(f"halfstep fit-batch --stage {stage} tries what fits")
    return "; ".join(advice)


def divisors(number: int) -> list[int]:
    """The numbers that divide `number`, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def finer_accumulation(batch_size: int, num_accumulation_steps: int) -> int | None:
    """The next number of accumulation steps that at least halves a part of the batch; None if parts are single."""
    if num_accumulation_steps == batch_size:
        return None
    return next(n for n in divisors(batch_size) if n >= 2 * num_accumulation_steps)
