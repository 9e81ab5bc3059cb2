import math

import numpy as np
import pytest
import torch

from halfstep.diffusion.schedule import LogLinearSchedule
from halfstep.evaluation.likelihood import denoiser_likelihood
from halfstep.evaluation.loss_by_time import loss_by_time


def test_a_loss_that_is_the_time_averages_to_the_middle_of_each_bucket():
    t = (np.arange(1000) + 0.5).reshape(250, 4, order="F") / 1000
    buckets = loss_by_time(t, t, num_buckets=5)
    assert [bucket["value"] for bucket in buckets] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert [(bucket["t_low"], bucket["t_high"]) for bucket in buckets] == [(i / 5, (i + 1) / 5) for i in range(5)]


def test_a_time_on_an_edge_belongs_to_the_bucket_below_it():
    t = np.array([[0.5], [1.0]])
    first, second = loss_by_time(t, np.array([[3.0], [7.0]]), num_buckets=2)
    assert (first["value"], second["value"]) == (3, 7)


def test_looks_at_one_sequence_count_once():
    # Row means 2 and 6: mean 4, standard error |6 - 2| / 2 = 2 (two values).
    (bucket,) = loss_by_time(np.full((2, 2), 0.5), np.array([[1.0, 3.0], [6.0, 6.0]]), num_buckets=1)
    assert (bucket["value"], bucket["error"], bucket["count"]) == (4, pytest.approx(2), 2)


def test_a_bucket_without_a_time_is_a_stated_null():
    buckets = loss_by_time(np.array([[0.9]]), np.array([[1.0]]), num_buckets=2)
    assert buckets[0] == {"t_low": 0.0, "t_high": 0.5, "value": None, "error": None, "count": 0}
    assert buckets[1]["value"] == 1


@pytest.mark.parametrize("t", [[[0.0]], [[1.1]], [[0.5, 0.5]]])
def test_times_outside_and_shapes_that_differ_are_refused(t):
    with pytest.raises(ValueError, match=r"t has shape|times lie"):
        loss_by_time(np.array(t), np.array([[1.0]]))


def test_the_buckets_of_a_uniform_denoiser_all_cost_log_of_the_clean_vocabulary():
    vocab, mask = 11, 10
    likelihood = denoiser_likelihood(
        lambda xt, at: torch.zeros(int(at.sum()), vocab),
        np.random.default_rng(0).integers(0, mask, size=(400, 24)).astype(np.uint16),
        schedule=LogLinearSchedule(1e-3),
        min_time=1e-5,
        mask_token_id=mask,
        num_draws=10,
        batch_size=400,
        seed=0,
        device=torch.device("cpu"),
    )
    assert [loss["count"] for loss in likelihood.by_time] == [400] * 10
    for loss in likelihood.by_time:
        # Five standard errors, ten buckets: a false alarm of 6e-6 if the seed were free.
        assert abs(loss["value"] - math.log(mask)) < 5 * loss["error"]
    # Each draw has its own tenth of the time, so the buckets' mean is the bound itself.
    assert np.mean([loss["value"] for loss in likelihood.by_time]) == pytest.approx(likelihood.nll_per_token.value)
