"""Every metric, on a tiny model and a few samples."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation import metrics
from halfstep.evaluation.evaluated import Evaluated
from halfstep.evaluation.likelihood import denoiser_likelihood
from halfstep.evaluation.measure import describe, metric
from halfstep.evaluation.scorer import Scorer, read_tokens
from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import Record, Row
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.joint import JointHeadConfig, JointModel
from halfstep.samples.table import SampleSet
from halfstep.settings import load_params

IDS = [[0, 3, 4, 1], [0, 5, 6, 1], [0, 3, 4, 1]]
FREE = SampleSet("ancestral", "num_steps=8", 1.0, 8, [5, 6, 7], IDS, IDS, [-1] * 3, 0, ["", "", ""])
SAME = [[0, 3, 4, 5, 6]] * 4
DRAWN = ("ancestral", "num_steps=8", 1.0)


class Rows:
    """Validation tokens in memory, as `PackedTokens` gives them."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = np.array(rows)
        self.shape = self.rows.shape
        self.has_given = bool((self.rows < 0).any())

    def stored(self, which) -> np.ndarray:
        return self.rows[which]


def continuing(token_ids: list[list[int]], prefix_rows: list[int]) -> SampleSet:
    return replace(FREE, nfe=[8] * len(token_ids), token_ids=token_ids, prefix_rows=prefix_rows, prefix_length=2)


@pytest.fixture
def evaluated(gpt2, tokenizer, tmp_path: Path) -> Evaluated:
    settings = load_params(Path("params.yaml")).evaluate
    changes = {"num_bootstrap_resamples": 50, "mauve_num_buckets": 2, "mauve_num_seeds": 2, "batch_size": 4}
    return Evaluated(
        opened=gpt2,
        tokenizer=tokenizer,
        scorer=Scorer(gpt2, tokenizer),
        sample_sets=[(FREE, continuing(SAME, [4, 4, 9, 9]))],
        valid_tokens=Rows([[0, 3 + i % 8, 4, 5, 6] for i in range(10)]),
        tokens_path=tmp_path / "tokens",
        passages=["the cat saw a cat"],
        settings=settings.model_copy(update=changes),
        seed=0,
        device=torch.device("cpu"),
        folder=tmp_path / "batches",
    )


def measured(evaluated: Evaluated, name: str) -> dict[str, Estimate]:
    rows = list(metric(name)(evaluated))
    assert {(row.sampler, row.setting, row.temperature) for row in rows} <= {DRAWN, (None, None, None)}
    return {row.metric: row.estimate for row in rows}


def test_perplexity_and_entropy_come_together(evaluated, gpt2) -> None:
    found = measured(evaluated, "generative_perplexity")
    scored = read_tokens(gpt2, FREE.token_ids, batch_size=4)
    perplexity = math.exp(sum(scored.nlls) / sum(scored.num_tokens))
    assert found["generative_perplexity"].value == pytest.approx(perplexity)
    low, high = found["generative_perplexity"].interval
    assert low <= perplexity <= high
    assert found["entropy"].value == pytest.approx(math.log(4))
    assert found["num_windowed"].value == 0
    assert found.keys() == {
        "data_generative_perplexity", "data_entropy", "generative_perplexity", "entropy", "num_windowed",
    }  # fmt: skip


def test_of_answers_what_is_new_is_measured_up_to_its_end(evaluated, gpt2) -> None:
    """Two prompts of two and three tokens; the first answer ends, and is filled with EOS."""
    ids = [[0, 3, 4, 5, 1, 1, 1], [0, 4, 5, 6, 7, 8, 4]]
    drawn = replace(FREE, token_ids=ids, unmask_step=[[0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 2, 2]], nfe=[2, 2])
    text = Rows([[~0, ~3, 6, 7, 1, 1, 1], [~0, ~4, ~5, 3, 1, 1, 1]])
    answering = replace(evaluated, valid_tokens=text, sample_sets=[(drawn, replace(drawn, prefix_rows=[0, 1]))])

    def expected(pairs: list[tuple[list[int], int]]) -> float:
        whole, prompts = (
            read_tokens(gpt2, [ids[:end] for ids, end in some], batch_size=4)
            for some in ([(ids, len(ids)) for ids, _ in pairs], pairs)
        )
        return math.exp((sum(whole.nlls) - sum(prompts.nlls)) / (sum(whole.num_tokens) - sum(prompts.num_tokens)))

    found = measured(answering, "generative_perplexity")
    assert found["generative_perplexity"].value == pytest.approx(expected([(ids[0][:5], 2), (ids[1], 3)]))
    assert found["data_generative_perplexity"].value == pytest.approx(
        expected([([0, 3, 6, 7, 1], 2), ([0, 4, 5, 3, 1], 3)])
    )
    assert found["entropy"].value == pytest.approx((math.log(3) + math.log(4)) / 2)
    assert found["data_entropy"].value == pytest.approx((math.log(3) + math.log(2)) / 2)
    assert measured(answering, "distinct")["distinct_2"].value == 1
    assert measured(answering, "distinct")["distinct_1"].value == 6 / 7
    # As many nats as the answers have, over their tokens: EOS to the end of a row counts, for it is learned.
    likelihood = measured(answering, "likelihood")
    filled = expected([([0, 3, 6, 7, 1, 1, 1], 2), ([0, 4, 5, 3, 1, 1, 1], 3)])
    assert likelihood["validation_perplexity"].value == pytest.approx(filled)


def test_counted_measures(evaluated) -> None:
    assert measured(evaluated, "nfe")["nfe"].value == 6
    # 2 of 3 sequences are the same: 12 tokens of 6 kinds, 9 pairs of 6 kinds.
    shares = {f"distinct_{n}": share for n, share in enumerate((6 / 12, 6 / 9, 4 / 6, 2 / 3), 1)}
    assert {name: found.value for name, found in measured(evaluated, "distinct").items()} == pytest.approx(shares)


def test_self_bleu_is_among_continuations_of_one_prefix_without_the_prefix(evaluated) -> None:
    """The prefix is the same in all; what follows is the same for one prefix, and shares no word for the other."""
    texts = [[0, 3, 4, 5, 6], [0, 3, 4, 5, 6], [0, 3, 7, 8, 9], [0, 3, 10, 11, 12]]
    found = measured(replace(evaluated, sample_sets=[(FREE, continuing(texts, [4, 4, 9, 9]))]), "self_bleu")
    assert found["self_bleu"].value == pytest.approx(50, abs=1e-6)
    assert found["self_bleu"].count == 2


def test_what_cannot_be_measured_has_no_row(evaluated, tmp_path: Path) -> None:
    assert measured(evaluated, "mauve")["mauve"].count == 2
    alone = replace(
        evaluated, sample_sets=[(FREE, continuing([[0, 3, 4]], [4]))], passages=[], folder=tmp_path / "alone"
    )
    for name in ("mauve", "self_bleu", "cloze", "downstream", "likelihood_on"):
        assert measured(alone, name) == {}


def test_a_denoiser_is_measured_under_its_own_noise(evaluated) -> None:
    torch.manual_seed(0)
    # (vocab, mask, length, hidden, blocks, heads, cond, dropout, epsilon)
    model = Denoiser(DenoiserConfig(14, 13, 5, 16, 1, 2, 8, 0.0, 0.5)).eval()
    torch.nn.init.normal_(model.output_layer.linear.weight)
    found = measured(replace(evaluated, opened=model), "likelihood")["nll_per_token"]
    of_noise = {
        epsilon: denoiser_likelihood(
            model.logits_at,
            evaluated.held_out,
            schedule=LogLinearSchedule(epsilon),
            min_time=evaluated.settings.min_time,
            mask_token_id=13,
            num_draws=evaluated.settings.num_nelbo_draws,
            batch_size=4,
            seed=0,
            device=torch.device("cpu"),
        ).nll_per_token
        for epsilon in (1e-3, 0.5)
    }
    assert found == of_noise[0.5] != of_noise[1e-3]


def test_the_bound_in_steps_is_of_each_number_of_steps_and_of_a_head_where_there_is_one(evaluated) -> None:
    torch.manual_seed(0)
    trunk = Denoiser(DenoiserConfig(14, 13, 5, 16, 1, 2, 8, 0.0, 1e-3)).eval()
    torch.nn.init.normal_(trunk.output_layer.linear.weight)
    model = JointModel.untrained(trunk, JointHeadConfig(8, 1, 2, "sampler")).eval()
    found = measured(replace(evaluated, opened=model), "bound_in_steps")
    assert found.keys() == {"bound_in_8_steps.independent", "bound_in_8_steps.joint"}
    # An untrained head is the factorised model.
    values = [estimate.value for estimate in found.values()]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    torch.nn.init.normal_(model.joint_head.out.weight)
    trained = measured(replace(evaluated, opened=model, folder=evaluated.folder / "trained"), "bound_in_steps")
    assert trained["bound_in_8_steps.independent"].value == values[0]
    assert trained["bound_in_8_steps.joint"].value != pytest.approx(values[1], rel=1e-3)
    assert measured(replace(evaluated, opened=trunk, folder=evaluated.folder / "trunk"), "bound_in_steps").keys() == {
        "bound_in_8_steps.independent"
    }
    assert measured(evaluated, "bound_in_steps") == {}


RECORD = Record(
    "2", "denoiser", 2, 1, "models/ar", False,
    (
        Row("nfe", Estimate(3.5, None, 4, "1"), *DRAWN),
        Row("generative_perplexity", Estimate(34.0, 1.25, 4, "1"), *DRAWN),
        Row("entropy", Estimate(5.0, 0.125, 4, "nats"), *DRAWN),
    ),
    (), {},
)  # fmt: skip


def test_a_line_names_the_model_and_gives_perplexity_with_entropy() -> None:
    line = "model 2, num_steps=8: nfe 3.5, generative_perplexity 34 ± 1.2, entropy 5 ± 0.12, mauve -"
    assert describe(RECORD, *DRAWN[:2]) == line


def test_a_metric_is_one_file(evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "longest.py").write_text(
        "from halfstep.evaluation.evaluated import rows_of\n"
        "def measure(evaluated):\n"
        "    for samples, _ in evaluated.sample_sets:\n"
        "        yield from rows_of(samples, longest=max(map(len, samples.token_ids)))\n"
    )
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    assert measured(evaluated, "longest") == {"longest": Estimate(4.0, None, 1, "1")}
