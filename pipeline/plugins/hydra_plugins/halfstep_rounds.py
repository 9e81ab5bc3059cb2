"""Resolvers that turn one integer, `rounds`, into the list of rounds and the list of models.

DVC templates cannot count, Hydra composes before DVC reads: `${rounds:N}` becomes the mapping that `foreach` in
`dvc.yaml` expands into `distill@1` ... `distill@N`, and `${models:N}` the list behind `sample@m` and `evaluate@m`.
"""

import os
import shutil
import sys

from omegaconf import DictConfig, ListConfig, OmegaConf

MAX_ROUNDS = 30
"""As in `halfstep.settings`, which nothing here may import."""


def _checked(rounds: object) -> int:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 0 <= rounds <= MAX_ROUNDS:
        raise ValueError(f"rounds is {rounds!r}: give an integer from 0 to {MAX_ROUNDS}, such as rounds=3")
    return rounds


def schedule(rounds: object) -> DictConfig:
    """`{'1': {'teacher': '0'}, ...}`: round k has model k-1 as its teacher."""
    return OmegaConf.create({str(k): {"teacher": str(k - 1)} for k in range(1, _checked(rounds) + 1)})


def models(rounds: object) -> ListConfig:
    """`['ar', '0', '1', ...]`: the baseline, the first teacher, and the student of each round."""
    return OmegaConf.create(["ar", *(str(k) for k in range(_checked(rounds) + 1))])


OmegaConf.register_new_resolver("rounds", schedule, replace=True)
OmegaConf.register_new_resolver("models", models, replace=True)

# DVC starts stages as `python`. Where the path has none they get the one that DVC runs in.
if shutil.which("python") is None:
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
