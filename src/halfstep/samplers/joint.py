"""Tokens of one evaluation drawn together, by a model's joint head.

The head goes through the positions that a policy writes, in an order, and gives each its distribution q, given the
tokens before it. The trunk's distribution p of each position is known before any token is, so every position has a
draft d, drawn from p. A position takes its draft with probability min(1, q(d) / p(d)), and otherwise a token drawn
from what q has more than p, (q - p)+ normalised. It then has distribution q, and is its draft as often as can be: with
probability 1 - TV(p, q). One uniform number decides all of it: what draws the draft, and what that leaves.

So each token is a function of its number and the tokens before it, and these functions can be computed one after the
other, or all at once with the drafts in place of tokens, and again until nothing changes. A pass settles each position
before which it changed nothing, the next one at least: the tokens are the same, digit for digit of the random numbers,
and the passes fewer.
"""

from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.diffusion.categorical import draw_categorical, draw_with_rest
from halfstep.model.joint import Arrangement, Cache, JointModel
from halfstep.samplers.base import Asked, Policy, located
from halfstep.settings.evaluation import Drawing


@dataclass(frozen=True)
class DrawTogether:
    """Draws the tokens of an evaluation, see `halfstep.samplers.base.Together`.

    Changes the distribution that a policy with independent draws has: what is written together has the head's joint
    distribution, in which tokens fit each other. `sequential` and `speculative` write the same texts, but for rounding.

    Attributes:
        model: with its head.
        drawing: sequential, one position in a pass, with keys and values of earlier ones kept; speculative, as many as
            keep their drafts; parallel, as speculative, but what is not settled after `max_passes` is written too.
        max_passes: of the head in an evaluation; what they do not settle is left masked. None: as many as it takes.
    Source: Leviathan et al. 2023, arXiv:2211.17192, Section 2.3 and Appendix A.1 (acceptance, and why it is exact);
        Song et al. 2021, arXiv:2002.03629 (solving a triangular system in parallel); drafts from a masked model's own
        marginals as in Campbell et al. 2025, arXiv:2510.03929, where a pass keeps what comes before the first
        rejection.
    """

    model: JointModel
    drawing: Drawing
    max_passes: int | None

    def __call__(
        self, asked: Asked, chosen: Tensor | None, writes: Tensor, policy: Policy, u_token: Tensor, likeliest: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Together`."""
        hidden = asked.hidden if chosen is None else asked.hidden[chosen]
        priority = policy.priority
        if priority is None:
            priority = -torch.arange(writes.shape[1], device=writes.device).expand(writes.shape)
        run = _Run(self.model, asked, hidden, writes, policy, u_token[writes], likeliest)
        arrangement = self.model.arrange(writes, priority)
        going_through = run.sequential if self.drawing == "sequential" else run.speculative
        num_settled, passes = going_through(arrangement, self.max_passes)
        if self.drawing == "parallel":
            return writes, run.tokens, passes
        place = torch.arange(arrangement.rows.shape[1], device=writes.device)
        settled = torch.zeros_like(run.tokens, dtype=torch.bool)
        settled[arrangement.rows[arrangement.is_in & (place < num_settled[:, None])]] = True
        written = writes.clone()
        written[writes] = settled
        return written, run.tokens[settled], passes


class _Run:
    """One evaluation's positions, N in row-major order, and their tokens so far, which at first are the drafts."""

    def __init__(
        self,
        model: JointModel,
        asked: Asked,
        hidden: Tensor,
        writes: Tensor,
        policy: Policy,
        u: Tensor,
        likeliest: bool,
    ) -> None:
        self.model, self.asked, self.hidden = model, asked, hidden
        self.policy, self.likeliest = policy, likeliest
        self.positions = writes.flatten().nonzero()[:, 0]
        drafts, rests, log_p_of_drafts = [], [], []
        for logits, positions in located(asked.project(hidden), writes):
            some, u = u[: len(logits)], u[len(logits) :]
            draft, rest = (logits.argmax(dim=-1), some) if likeliest else draw_with_rest(logits, some)
            policy.wrote(logits, positions, draft)
            drafts.append(draft)
            rests.append(rest)
            log_p_of_drafts.append(_log_p(logits, draft))
        self.drafts, self.rest, self.log_p_of_draft = (torch.cat(each) for each in (drafts, rests, log_p_of_drafts))
        self.tokens = self.drafts.clone()

    def sequential(self, arrangement: Arrangement, max_passes: int | None) -> tuple[Tensor, Tensor]:
        """(positions settled, passes made), each int64 [batch]: one position after the other."""
        counts = arrangement.is_in.sum(dim=1)
        cache, weight = Cache(), self.model.projection()[0]
        num_places = arrangement.rows.shape[1]
        if max_passes is not None:
            num_places = min(num_places, max_passes + 1)
        ordered = self.hidden[arrangement.rows]
        for place in range(1, num_places):
            now, last = slice(place, place + 1), slice(place - 1, place)
            embedded = F.embedding(self.tokens[arrangement.rows[:, last]], weight)
            before = ordered[:, last], embedded, arrangement.columns[:, last]
            correction = self.model.joint_head.next(ordered[:, now], arrangement.columns[:, now], before, cache)
            is_in = arrangement.is_in[:, place]
            which = arrangement.rows[is_in, place]
            self._decide((ordered[:, now] + correction.to(ordered.dtype))[is_in, 0], which)
        settled = counts.clamp(max=num_places)
        return settled, (settled - 1).clamp(min=0)

    def speculative(self, arrangement: Arrangement, max_passes: int | None) -> tuple[Tensor, Tensor]:
        """(positions settled, passes made), each int64 [batch]: all positions at once, until nothing changes."""
        counts = arrangement.is_in.sum(dim=1)
        settled, passes = counts.clamp(max=1), torch.zeros_like(counts)
        for _ in count() if max_passes is None else range(max_passes):
            going = (settled < counts).nonzero()[:, 0]
            if not going.numel():
                break
            some = arrangement.select(going)
            before = self.tokens[some.rows]
            conditional = self.model.conditional(self.hidden, before, some)
            self._decide(conditional[some.is_in], some.rows[some.is_in])
            changed = (self.tokens[some.rows] != before) & some.is_in
            first = torch.where(changed.any(dim=1), changed.int().argmax(dim=1), counts[going])
            settled[going] = torch.minimum(first + 1, counts[going])
            passes[going] += 1
        return settled, passes

    def _decide(self, conditional: Tensor, which: Tensor) -> None:
        """Give some positions, int64 [m], their tokens by the head's distributions, of hidden states [m, h]."""
        for logits in self.asked.project(conditional):
            rows, which = which[: len(logits)], which[len(logits) :]
            self.tokens[rows] = logits.argmax(dim=-1) if self.likeliest else self._accepted(logits, rows)
            self.policy.wrote(logits, self.positions[rows], self.tokens[rows])

    def _accepted(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The draft, or a token from what the head gives more probability than the trunk, int64 [m]."""
        drafts, rest = self.drafts[rows], self.rest[rows]
        accept = (_log_p(logits, drafts) - self.log_p_of_draft[rows]).clamp(max=0).exp()
        rejected = (rest >= accept).nonzero()[:, 0]
        tokens = drafts.clone()
        done = 0
        for p_logits in self.asked.project(self.hidden[rows[rejected]]):
            some = rejected[done : done + len(p_logits)]
            done += len(p_logits)
            more = (logits[some].double().softmax(dim=-1) - p_logits.double().softmax(dim=-1)).clamp(min=0)
            # Where rounding leaves nothing the distributions are the same.
            is_more = more.sum(dim=-1) > 0
            some, more = some[is_more], more[is_more]
            left = (rest[some] - accept[some]) / (1 - accept[some])
            tokens[some] = draw_categorical(more.log(), left.clamp(0, 1 - 2**-53))
        return tokens


def _log_p(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of a token in each row, float64 [n]."""
    return (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)).double()
