"""A denoiser as a model of lm-eval: all tokens of the target at once, and its likelihood over orders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from lm_eval.api.model import TemplateLM
from torch import Tensor

from halfstep.diffusion.subs import masked_log_probs
from halfstep.evaluation.harness import encode_passage
from halfstep.sampling import LogitsAt
from halfstep.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def target_maskings(num_tokens: int, num_maskings: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which tokens of a target to mask, and how to weigh what their prediction costs.

    Generating the target's n tokens one by one in a random order costs, on average over orders,
    E_k [ n / k * E_S [ sum over S of -log p(x_i | all outside S) ] ], k uniform on 1..n and S uniform among
    the subsets of size k. It bounds the negative log-likelihood from above, as the NELBO restricted to the
    target does. The expectation is taken over all 2^n - 1 subsets if these are no more than num_maskings, and
    else estimated from num_maskings draws.

    Args:
        num_tokens: n, 1 or more.
        num_maskings: draws, 1 or more.
        generator: randomness, on the CPU.
    Returns:
        (is_masked bool [m, n], weight float64 [m]), rows distinct, the first with everything masked (its
        weight may be 0). Summed over rows, weight * (sum of -log p at masked tokens) is the estimate.
    Source: Nie et al. 2025, arXiv:2502.09992, Section on evaluation (conditional likelihood, drawn by number
        of masks); Hoogeboom et al. 2021, arXiv:2110.02037 (order-agnostic bound).
    """
    n = num_tokens
    weights: dict[tuple[bool, ...], float] = {(True,) * n: 0.0}
    if 2**n - 1 <= num_maskings:
        for subset in product((True, False), repeat=n):
            if k := sum(subset):
                weights[subset] = 1 / (k * math.comb(n, k))
    else:
        for _ in range(num_maskings):
            k = int(torch.randint(1, n + 1, (), generator=generator))
            chosen = set(torch.randperm(n, generator=generator)[:k].tolist())
            subset = tuple(i in chosen for i in range(n))
            weights[subset] = weights.get(subset, 0.0) + n / k / num_maskings
    return torch.tensor(list(weights)), torch.tensor(list(weights.values()), dtype=torch.float64)


@dataclass(frozen=True)
class _Query:
    """One forward pass for one masking of one passage."""

    request: int
    xt: list[int]
    is_masked: list[bool]
    weight: float
    is_all: bool


class DenoiserLM(TemplateLM):
    """Answers lm-eval's log-likelihood requests with a denoiser.

    The input is `BOS context target EOS` with masks in the target. Greedy decoding takes all target tokens in
    one pass from a fully masked target; the log-likelihood is the bound of `target_maskings`.

    Attributes:
        num_truncated: contexts that lost tokens on the left to fit.
    """

    def __init__(
        self,
        logits_at: LogitsAt,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int,
        mask_token_id: int,
        num_maskings: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            logits_at: the denoiser in evaluation mode, see `LogitsAt`.
            tokenizer: with BOS and EOS.
            max_length: tokens of the longest input, BOS and EOS included.
            mask_token_id: id of the absorbing state.
            num_maskings: see `target_maskings`.
            batch_size: inputs per forward pass; inputs of one length go together, so there is no padding.
            seed: each passage's maskings depend on it and the passage alone.
            device: where the denoiser computes.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.num_truncated = 0
        self._logits_at = logits_at
        self._max_length = max_length
        self._mask_token_id = mask_token_id
        self._num_maskings = num_maskings
        self._batch_size = batch_size
        self._seed = seed
        self._device = device

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """BOS: what stands before an empty context."""
        return self.tokenizer.bos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids without special tokens."""
        return self.tokenizer.encode(string, add_special_tokens=False)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, target_ids, is_cut = encode_passage(self.tokenizer, context, continuation, self._max_length - 1)
        self.num_truncated += is_cut
        return context_ids, target_ids

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        queries = [query for i, request in enumerate(requests) for query in self._queries(i, *request)]
        log_likelihood = [0.0] * len(requests)
        is_greedy = [False] * len(requests)
        # The sort is stable and by length alone: no padding, and an order that depends on the requests only.
        for _, same_length in groupby(sorted(queries, key=lambda q: len(q.xt)), key=lambda q: len(q.xt)):
            group = list(same_length)
            for start in range(0, len(group), self._batch_size):
                batch = group[start : start + self._batch_size]
                for query, (log_p, is_best) in zip(batch, self._predict(batch, requests), strict=True):
                    # Weight 0 only serves to decode greedily; times an infinite cost it would be NaN.
                    if query.weight > 0:
                        log_likelihood[query.request] += query.weight * log_p
                    if query.is_all:
                        is_greedy[query.request] = is_best
        return list(zip(log_likelihood, is_greedy, strict=True))

    def _queries(self, index: int, texts: tuple[str, str], context: list[int], target: list[int]) -> list[_Query]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "cloze", *texts))
        masks, weights = target_maskings(len(target), self._num_maskings, generator)
        before, after = [False] * len(context), [False]
        return [
            _Query(
                request=index,
                xt=[
                    *context,
                    *(self._mask_token_id if hide else token for token, hide in zip(target, mask, strict=True)),
                    self.eot_token_id,
                ],
                is_masked=before + mask + after,
                weight=weight,
                is_all=all(mask),
            )
            for mask, weight in zip(masks.tolist(), weights.tolist(), strict=True)
        ]

    def _predict(
        self, batch: Sequence[_Query], requests: Sequence[tuple[tuple[str, str], list[int], list[int]]]
    ) -> list[tuple[float, bool]]:
        """(log-probability of the masked target tokens, whether each is the most likely) of each query."""
        xt = torch.tensor([query.xt for query in batch], device=self._device)
        is_masked = torch.tensor([query.is_masked for query in batch], device=self._device)
        x0 = torch.tensor(
            [[*requests[q.request][1], *requests[q.request][2], self.eot_token_id] for q in batch],
            device=self._device,
        )
        log_p = masked_log_probs(self._logits_at(xt, is_masked), self._mask_token_id)
        targets = x0[is_masked]
        sizes = is_masked.sum(dim=1).tolist()
        of_target = log_p.gather(-1, targets[:, None])[:, 0].double().split(sizes)
        is_best = (log_p.argmax(dim=-1) == targets).split(sizes)
        return [(float(values.sum()), bool(best.all())) for values, best in zip(of_target, is_best, strict=True)]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> NoReturn:
        """Not to be had."""
        raise NotImplementedError("a denoiser answers lm-eval's loglikelihood requests, not loglikelihood_rolling")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> NoReturn:
        """Not to be had."""
        raise NotImplementedError("a denoiser answers lm-eval's loglikelihood requests, not generate_until")
