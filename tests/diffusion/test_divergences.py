import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from halfstep.diffusion.divergences import DIVERGENCES, kl_student_teacher, kl_teacher_student, mse, total_variation


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher log-probabilities with an impossible mask column, float64 [5, 4]."""
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
    logits[..., 3] = -torch.inf
    student, teacher = logits.log_softmax(-1)
    return student, teacher


def test_the_two_kls_are_those_of_torch_distributions(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = (Categorical(logits=log_p[:, :3]) for log_p in pair)
    torch.testing.assert_close(kl_student_teacher(*pair), kl_divergence(student, teacher))
    torch.testing.assert_close(kl_teacher_student(*pair), kl_divergence(teacher, student))


def test_total_variation_is_half_the_l1_distance_and_at_most_one() -> None:
    student = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log()
    teacher = torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.5, 0.25]]).log()
    torch.testing.assert_close(total_variation(student, teacher), torch.tensor([1.0, 0.25]))


def test_mse_is_over_the_tokens_that_are_possible() -> None:
    student = torch.tensor([[-1.0, -2.0, -torch.inf]])
    teacher = torch.tensor([[-2.0, -4.0, -torch.inf]])
    torch.testing.assert_close(mse(student, teacher), torch.tensor([2.5]))


@pytest.mark.parametrize(
    ("name", "if_student_excludes", "if_teacher_excludes"),
    [
        ("kl_student_teacher", math.log(2), math.inf),
        ("kl_teacher_student", math.inf, math.log(2)),
        ("mse", math.inf, math.inf),
        ("log_l1", math.inf, math.inf),
        ("total_variation", 0.5, 0.5),
    ],
)
def test_a_token_that_only_one_side_excludes(name: str, if_student_excludes: float, if_teacher_excludes: float) -> None:
    """Probabilities (1, 0) against (1/2, 1/2): what is impossible is infinitely far, but for 0 log 0 and for TVD."""
    certain, even = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(DIVERGENCES[name](certain, even)) == pytest.approx(if_student_excludes)
    assert float(DIVERGENCES[name](even, certain)) == pytest.approx(if_teacher_excludes)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_rows_may_lie_in_any_number_of_dimensions(name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    flat = DIVERGENCES[name](*pair)
    student, teacher = (rows.view(5, 1, 1, 4).expand(5, 2, 3, 4) for rows in pair)
    torch.testing.assert_close(DIVERGENCES[name](student, teacher), flat[:, None, None].expand(5, 2, 3))
    torch.testing.assert_close(DIVERGENCES[name](pair[0][0], pair[1][0]), flat[0])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_predictions_have_no_distance(name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    distance = DIVERGENCES[name](pair[0], pair[0])
    torch.testing.assert_close(distance, torch.zeros_like(distance))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_the_finite_differences_and_finite_at_impossible_tokens(
    name: str, generator: torch.Generator
) -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    teacher[:, 4] = -torch.inf
    teacher = teacher.log_softmax(-1)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
        return DIVERGENCES[name](padded.log_softmax(-1), teacher).sum()

    assert torch.autograd.gradcheck(loss, (logits,))
