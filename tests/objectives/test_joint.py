"""Losses of the joint head against slow versions, and joint SDTT's against the distributions of whole sequences."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from tests.model.test_joint import MASK, VOCAB, conditionals, joint_model, log_probs
from torch import Tensor

from halfstep.diffusion.divergences import DIVERGENCES
from halfstep.diffusion.noise import mask_tokens_at
from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.model.base import MaskedModel
from halfstep.model.config import DenoiserConfig
from halfstep.model.denoiser import Denoiser
from halfstep.model.joint import JointHeadConfig, JointModel
from halfstep.objectives.base import Objective
from halfstep.objectives.heads import HeadSettings, TrainingOrder, with_head
from halfstep.objectives.joint import joint_objective
from halfstep.objectives.joint_sdtt import Settings, joint_sdtt_objective, teacher_trajectory
from halfstep.objectives.sdtt import sdtt_objective
from halfstep.objectives.teacher import Clock, Positions, TeacherSteps, later
from halfstep.run.errors import UserError

SCHEDULE = LogLinearSchedule(1e-3)
LENGTH = 3


def some_denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    # With absolute positions: without them a sequence of masks looks the same everywhere.
    denoiser = Denoiser(DenoiserConfig(VOCAB, MASK, LENGTH, 16, 1, 2, 8, 0.0, 1e-3, absolute_positions=True))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return denoiser.eval().requires_grad_(False)


def some_model(seed: int) -> JointModel:
    model = JointModel.untrained(some_denoiser(seed), JointHeadConfig(16, 1, 2, "sampler"))
    torch.nn.init.normal_(model.joint_head.out.weight, std=0.5)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("order", ["random", "left_to_right", "both"])
@pytest.mark.parametrize("train_trunk", [False, True])
def test_the_loss_on_data_is_the_cross_entropy_of_each_token_given_those_before_it(
    order: TrainingOrder, train_trunk: bool
) -> None:
    model = joint_model("left_to_right" if order == "left_to_right" else "sampler")
    objective = joint_objective(
        schedule=SCHEDULE, min_time=1e-5, mask_token_id=MASK, train_trunk=train_trunk, order=order
    )
    generator = torch.Generator().manual_seed(2)
    x0 = torch.randint(VOCAB - 1, (8, 5), generator=generator)
    t, u_mask, u_order, share = drawn = objective.draw(x0.shape, generator)
    total, count = objective.loss(model, x0, *drawn)
    xt = mask_tokens_at(x0, SCHEDULE.alpha(t), MASK, u_mask)
    expected, expected_count = 0.0, 0
    for row in range(8):
        in_order = [place for place in range(5) if xt[row, place] == MASK]
        every = in_order
        if order == "left_to_right":
            in_order = [place for place in in_order if u_order[row, place] < share[row]]
        elif order == "random" or row % 2 == 0:
            in_order = sorted(in_order, key=lambda place, row=row: -float(u_order[row, place]))
        expected_count += len(in_order)
        # One after the other: what is not in the set stays masked, and its number does not matter.
        at = torch.zeros(1, 5, dtype=torch.bool)
        at[0, every] = True
        hidden = model.hidden_at(xt[row : row + 1], at)
        chosen = torch.zeros_like(at)
        chosen[0, in_order] = True
        priority = torch.zeros(1, 5)
        priority[0, in_order] = -torch.arange(len(in_order), dtype=torch.float32)
        arrangement = model.arrange(chosen, priority)
        conditional = model.conditional(hidden[chosen[at]], x0[row : row + 1, in_order], arrangement)
        for place, log_p in zip(in_order, log_probs(model, conditional)[0], strict=True):
            expected -= float(log_p[x0[row, place]])
        if train_trunk:
            for place, log_p in zip(every, log_probs(model, hidden), strict=True):
                expected -= float(log_p[x0[row, place]])
    assert count == expected_count > 0
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_the_clock_goes_as_samplers_with_these_counts_do() -> None:
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert later(t, 0.25, "even").tolist() == [0.75, 0.25]
    for step in range(4):
        begins = torch.tensor([math.cos(math.pi / 2 * step / 4)], dtype=torch.float64)
        ends = later(begins, 0.25, "cosine").item()
        assert ends == pytest.approx(math.cos(math.pi / 2 * (step + 1) / 4) if step < 3 else 0.0, abs=1e-12)
    # Two steps lead where one of twice the duration does.
    assert torch.allclose(later(later(t, 0.2, "cosine"), 0.3, "cosine"), later(t, 0.5, "cosine"))
    assert later(t, 0.7, "cosine").tolist()[1] == 0.0


def test_the_clock_decides_which_positions_the_teacher_unmasks_in_a_step() -> None:
    """Closed form: of uniform numbers, those above the share that a step leaves masked."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5)[None] / 1000
    t = torch.tensor([1.0], dtype=torch.float64)
    for clock in ("even", "cosine"):
        steps = TeacherSteps(0.25, 2, SCHEDULE, clock).unmask_steps(u, t)  # type: ignore[arg-type]
        shares = [0.25, 0.5] if clock == "even" else [1 - math.cos(math.pi / 8), 1 - math.cos(math.pi / 4)]
        for step, share in enumerate(shares, 1):
            assert (steps <= step).double().mean().item() == pytest.approx(share, abs=1e-3)


def steps_of(u_time: Tensor, t: Tensor, dt: float, k: int, clock: Clock = "even") -> Tensor:
    return TeacherSteps(dt, k, SCHEDULE, clock).unmask_steps(u_time, t).clamp(max=k)


def whole_sequences() -> Tensor:
    return torch.tensor(list(itertools.product(range(VOCAB - 1), repeat=LENGTH)))


def teacher_log_p(teacher: MaskedModel, x: Tensor, step: Tensor, u_time: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of whole sequences x [n, length], written from nothing in k steps: the slow version of a trajectory.

    Returns:
        (log-probability of each sequence [n], distribution of each token when it was written [n, length, vocab]).
    """
    of_tokens = torch.zeros(*x.shape, VOCAB, dtype=torch.float64)
    for i in range(1, k + 1):
        at = (step == i).expand(x.shape)
        xs = torch.where(step < i, x, MASK)
        hidden = teacher.hidden_at(xs, at)
        if isinstance(teacher, JointModel):
            arrangement = teacher.arrange(at, u_time.expand(x.shape))
            hidden = arrangement.row_major(teacher.conditional(hidden, x.gather(1, arrangement.columns), arrangement))
        of_tokens[at] = log_probs(teacher, hidden)  # type: ignore[arg-type]
    return of_tokens.gather(2, x[..., None])[..., 0].sum(dim=1), of_tokens


def numbers_that_write(x: Tensor, of_tokens: Tensor) -> Tensor:
    """For each token the middle of the numbers by which an independent draw is that token, float64 [n, length]."""
    cumulative = of_tokens.exp().cumsum(dim=-1)
    upper = cumulative.gather(2, x[..., None])[..., 0]
    return upper - of_tokens.exp().gather(2, x[..., None])[..., 0] / 2


def surest_steps(teacher: MaskedModel, x: Tensor, random_steps: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Where each step writes as many positions as `random_steps` [1, length] has, but those of least entropy.

    Returns:
        (step, order with the highest first) of each position of whole sequences x, as [n, length].
    """
    step, order = torch.zeros_like(x), torch.zeros(x.shape, dtype=torch.float64)
    for row, tokens in enumerate(x):
        place = 0
        for i in range(1, k + 1):
            left = step[row] == 0
            xs = torch.where(left, MASK, tokens)[None]
            log_p = log_probs(teacher, teacher.hidden_at(xs, left[None]))  # type: ignore[arg-type]
            entropies = -(log_p[:, :MASK].exp() * log_p[:, :MASK]).sum(dim=-1)
            surest = left.nonzero()[:, 0][entropies.argsort()][: int((random_steps == i).sum())]
            for position in surest.tolist():
                step[row, position], order[row, position], place = i, -place, place + 1
    return step, order


CASES = [
    (k, clock, has_head, positions)
    for k in (2, 4)
    for clock in ("even", "cosine")
    for has_head, positions in ((False, "random"), (True, "random"), (False, "surest"))
]


@pytest.mark.parametrize(("k", "clock", "has_head", "positions"), CASES)
def test_the_expected_loss_is_the_divergence_of_whole_sequences(
    k: int, clock: Clock, has_head: bool, positions: Positions
) -> None:
    """By enumeration: sum over the tokens of KL(teacher || student) = KL of the two distributions of what k steps of
    the teacher and one of the student write from nothing. So a loss of zero means that they are the same.
    """
    teacher = some_model(1) if has_head else some_denoiser(5)
    student = some_model(2)
    u_time = torch.tensor([[0.9, 0.2, 0.4]], dtype=torch.float64)
    t = torch.tensor([1.0], dtype=torch.float64)
    step, x = steps_of(u_time, t, 1 / k, k, clock), whole_sequences()
    order = u_time.expand(x.shape)
    if positions == "surest":
        step, order = surest_steps(teacher, x, step, k)
        assert len(order.unique(dim=0)) > 1  # what comes second depends on the first
    teacher_total, of_tokens = teacher_log_p(teacher, x, step, u_time, k)
    assert teacher_total.exp().sum().item() == pytest.approx(1, abs=1e-6)
    given = torch.full_like(x, MASK)
    student_total = conditionals(student, given, x, order).sum(dim=1)
    expected = (teacher_total.exp() * (teacher_total - student_total)).sum()
    objective = joint_sdtt_objective(
        teacher, TeacherSteps(1 / k, k, SCHEDULE, clock, positions), divergence=DIVERGENCES["kl_teacher_student"],
        min_time=1e-5, mask_token_id=MASK, train_trunk=False,
    )  # fmt: skip
    losses = list(per_sequence(objective, teacher, student, x, u_time, of_tokens, k, clock))
    average = sum(math.exp(log_p) * loss for log_p, loss in zip(teacher_total.tolist(), losses, strict=True))
    assert average == pytest.approx(float(expected), rel=1e-4)
    assert average > 0.05


def per_sequence(
    objective: Objective, teacher: MaskedModel, student: JointModel, x: Tensor, u_time: Tensor, of_tokens: Tensor,
    k: int, clock: Clock,
) -> Iterator[float]:  # fmt: skip
    """The loss where the teacher writes each of these sequences, of x0 masked whole at time 1."""
    has_head = isinstance(teacher, JointModel)
    u_token = numbers_found(teacher, x, u_time, k, clock) if has_head else numbers_that_write(x, of_tokens)
    t = torch.ones(1, dtype=torch.float64)
    for row in range(len(x)):
        drawn = (t, torch.full((1, LENGTH), 0.5, dtype=torch.float64), u_time, u_token[row : row + 1])
        total, count = objective.loss(student, x[row : row + 1], *drawn)
        assert count == LENGTH
        yield float(total)


def numbers_found(teacher: JointModel, x: Tensor, u_time: Tensor, k: int, clock: Clock) -> Tensor:
    """Numbers [n, length] by which a teacher with a head writes x: tried over a grid, one token after the other."""
    grid = torch.linspace(0.0005, 0.9995, 100, dtype=torch.float64)
    numbers = torch.full(x.shape, 0.5, dtype=torch.float64)
    for place in u_time[0].argsort(descending=True).tolist():
        tried = numbers[:, None].repeat(1, len(grid), 1)
        tried[..., place] = grid
        tokens, _, _ = trajectory(
            teacher, torch.full((tried[..., 0].numel(), LENGTH), MASK), u_time, tried.flatten(0, 1), k, clock
        )
        writes = tokens[:, place].view(len(x), -1) == x[:, place, None]
        assert writes.any(dim=1).all()
        numbers[:, place] = grid[writes.int().argmax(dim=1)]
    return numbers


def trajectory(
    teacher: MaskedModel, xt: Tensor, u_time: Tensor, u_token: Tensor, k: int, clock: Clock
) -> tuple[Tensor, Tensor, Tensor]:
    return teacher_trajectory(
        teacher, TeacherSteps(1 / k, k, SCHEDULE, clock), xt, torch.ones(len(xt), dtype=torch.float64),
        mask_token_id=MASK, u_time=u_time.expand(xt.shape), u_token=u_token,
    )  # fmt: skip


@pytest.mark.parametrize("has_head", [False, True])
def test_what_the_teacher_writes_and_its_distributions_are_those_of_its_steps(has_head: bool) -> None:
    teacher = some_model(1) if has_head else some_denoiser(1)
    u_time = torch.tensor([[0.9, 0.2, 0.6]], dtype=torch.float64)
    u_token = torch.rand(64, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens, _, hidden = trajectory(teacher, torch.full((64, LENGTH), MASK), u_time, u_token, 2, "even")
    assert len(tokens.unique(dim=0)) > 10
    step = steps_of(u_time, torch.ones(1, dtype=torch.float64), 0.5, 2)
    _, of_tokens = teacher_log_p(teacher, tokens, step, u_time, 2)
    found = log_probs(teacher, hidden)  # type: ignore[arg-type]
    assert torch.allclose(found.view(of_tokens.shape).exp(), of_tokens.exp(), atol=1e-6)


@pytest.mark.parametrize("asks_in_every_step", [False, True])
def test_the_teacher_is_asked_only_where_a_step_unmasks_something_or_in_every_step(asks_in_every_step: bool) -> None:
    asked: list[int] = []

    class Counted(Agreeing):
        def hidden_at(self, xt: Tensor, at: Tensor, **options: object) -> Tensor:
            asked.append(len(xt))
            return super().hidden_at(xt, at, **options)

    # Of three sequences one unmasks in the second of four steps, and two in the last.
    u_time = torch.tensor([[0.6, 0.6], [0.1, 0.1], [0.1, 0.1]], dtype=torch.float64)
    teacher_trajectory(
        Counted(), TeacherSteps(0.25, 4, SCHEDULE, asks_in_every_step=asks_in_every_step), torch.full((3, 2), MASK),
        torch.ones(3, dtype=torch.float64), mask_token_id=MASK, u_time=u_time, u_token=u_time,
    )  # fmt: skip
    assert asked == ([1, 1, 1, 2] if asks_in_every_step else [1, 2])


class Agreeing(torch.nn.Module):
    """A teacher of pairs that agree: the first token is one of two at random, the second the same, in either order."""

    def __init__(self) -> None:
        super().__init__()
        self.config = some_denoiser(0).config

    def hidden_at(self, xt: Tensor, at: Tensor, **_: object) -> Tensor:
        other = xt.flip(1)[at]
        logits = torch.full((len(other), VOCAB), -30.0)
        logits[:, :2] = 0.0
        logits[other != MASK] = -30.0
        logits[other != MASK, other[other != MASK]] = 30.0
        return logits

    def projection(self) -> tuple[Tensor, Tensor]:
        return torch.eye(VOCAB), torch.zeros(VOCAB)


def test_a_factorised_student_of_two_tokens_that_agree_misses_by_log_2() -> None:
    """Enumerated in docs/method.md: a joint student can have loss 0, no product of marginals less than log 2."""
    teacher = Agreeing()
    u_time = torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(400, -1)
    u_token = (torch.arange(400, dtype=torch.float64)[:, None] + 0.5).expand(-1, 2) / 400
    xt = torch.full((400, 2), MASK)
    tokens, _, hidden = trajectory(teacher, xt, u_time, u_token, 2, "even")
    assert tokens.unique(dim=0).tolist() == [[0, 0], [1, 1]]
    of_teacher = hidden.view(400, 2, VOCAB).log_softmax(dim=-1)
    forward = DIVERGENCES["kl_teacher_student"]

    def factorised(p: float) -> float:
        """Of a student whose second token is 0 with probability p, whatever the first; the first is as it should be."""
        second = torch.tensor([p, 1 - p, 0, 0]).log().expand(400, -1)
        return float(forward(second.clamp(min=-30), of_teacher[:, 1]).mean())

    grid = [factorised(p) for p in torch.linspace(0.01, 0.99, 99).tolist()]
    assert min(grid) == pytest.approx(math.log(2), abs=1e-3)
    joint = torch.full((400, VOCAB), -30.0)
    joint[torch.arange(400), tokens[:, 0]] = 30.0
    assert float(forward(joint.log_softmax(dim=-1), of_teacher[:, 1]).mean()) == pytest.approx(0, abs=1e-6)


def test_without_a_head_that_knows_anything_it_is_sdtt() -> None:
    """The same noise, teacher and trunk: an untrained head's loss, and the trunk's beside it, are SDTT's."""
    teacher, trunk = some_denoiser(1), some_denoiser(2)
    student = JointModel.untrained(trunk, JointHeadConfig(16, 1, 2, "sampler")).requires_grad_(False)
    common = {"divergence": DIVERGENCES["kl_student_teacher"], "min_time": 1e-5, "mask_token_id": MASK}
    x0 = torch.randint(VOCAB - 1, (16, LENGTH), generator=torch.Generator().manual_seed(0))
    for clock, positions in itertools.product(("even", "cosine"), ("random", "surest")):
        steps = TeacherSteps(0.25, 2, SCHEDULE, clock, positions)  # type: ignore[arg-type]
        plain = sdtt_objective(teacher, steps, **common)  # type: ignore[arg-type]
        total, count = plain(trunk, x0, torch.Generator().manual_seed(1))
        for train_trunk, factor in ((False, 1), (True, 2)):
            joint = joint_sdtt_objective(teacher, steps, train_trunk=train_trunk, **common)  # type: ignore[arg-type]
            joint_total, joint_count = joint(student, x0, torch.Generator().manual_seed(1))
            assert joint_count == count > 0
            assert float(joint_total) == pytest.approx(factor * float(total), rel=1e-4)


@pytest.mark.parametrize("train_trunk", [False, True])
def test_gradients_reach_what_is_trained_and_nothing_else(train_trunk: bool) -> None:
    settings = HeadSettings(hidden_size=None, num_layers=1, num_heads=2, order="random", train_trunk=train_trunk)
    teacher = some_denoiser(1)
    student = with_head(teacher, settings)
    torch.nn.init.normal_(student.joint_head.out.weight, std=0.1)
    objective = joint_sdtt_objective(
        teacher, TeacherSteps(0.25, 2, SCHEDULE), divergence=DIVERGENCES["kl_teacher_student"], min_time=1e-5,
        mask_token_id=MASK, train_trunk=train_trunk,
    )  # fmt: skip
    total, _ = objective(student, torch.zeros(8, LENGTH, dtype=torch.int64), torch.Generator().manual_seed(0))
    total.backward()
    assert all(parameter.grad is not None for parameter in student.joint_head.parameters())
    assert all((parameter.grad is not None) is train_trunk for parameter in student.trunk.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_goes_on_with_its_teachers_head_and_refuses_another() -> None:
    settings = HeadSettings(hidden_size=16, num_layers=1, num_heads=2, order="both", train_trunk=False)
    teacher = some_model(1)
    student = with_head(teacher, settings)
    assert student is not teacher
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)
    for changes in ({"num_layers": 2}, {"order": "left_to_right"}):
        with pytest.raises(UserError, match=r"the teacher has a joint head of .*, but the student is to have"):
            with_head(teacher, settings.model_copy(update=changes))
    with pytest.raises(UserError, match="hidden_size 16 does not give each of num_heads 5 an even width"):
        with_head(some_denoiser(0), settings.model_copy(update={"num_heads": 5}))


def test_joint_sdtt_has_the_order_of_the_trajectory_only() -> None:
    own = {
        "hidden_size": None,
        "num_layers": 1,
        "num_heads": 2,
        "train_trunk": True,
        "divergence": "mse",
        "clock": "even",
        "positions": "random",
    }
    with pytest.raises(ValueError, match="order is both, but the head learns the teacher's"):
        Settings(order="both", **own)  # type: ignore[arg-type]
