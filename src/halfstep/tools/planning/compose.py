"""Parameters as `dvc exp run -S` composes them, without writing params.yaml."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from halfstep.run.errors import UserError, one_line
from halfstep.settings import Params, load_params
from halfstep.settings.messages import nearest_key


def composed_params(overrides: Sequence[str], root: Path) -> Params:
    """The parameters that `dvc exp run -S OVERRIDE ...` would write, checked.

    Args:
        overrides: of Hydra, such as `preset=paper` or `pretrain.batch_size=64`.
        root: the project, which has pipeline/conf.
    Raises:
        UserError: there is no such folder, or an override does not compose, or what comes out contradicts itself.
    """
    conf, plugins = root / "pipeline" / "conf", root / "pipeline" / "plugins"
    if not (conf / "config.yaml").is_file():
        raise UserError(f"{conf / 'config.yaml'} is not there: -S needs a clone of halfstep; run in its root")
    # A comma is a sweep, which `dvc exp run --queue` takes apart; one plan is of one run.
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import compose_and_dump, get_hydra_sweeps
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    name = "params.yaml"
    given = " ".join(f"-S {override}" for override in overrides)
    with tempfile.TemporaryDirectory(prefix="halfstep-") as folder:
        path = Path(folder) / name
        try:
            runs = get_hydra_sweeps({name: list(overrides)}) if overrides else [{name: []}]
            if len(runs) > 1:
                raise UserError(f"{one_line(given)} is a sweep of {len(runs)} runs: plan them one at a time")
            compose_and_dump(path, str(conf.resolve()), None, "config", str(plugins.resolve()), list(runs[0][name]))
        # A plugin's resolver raises plain exceptions.
        except (HydraException, OmegaConfBaseException, DvcException, ValueError) as error:
            refused = re.search(r"Could not override '(.+?)'", str(error))
            nearest = nearest_key(refused[1], Params) if refused else None
            hint = f"; is {nearest} meant?" if nearest else ""
            raise UserError(f"{one_line(given)} cannot be composed: {one_line(error)}{hint}") from None
        try:
            return load_params(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), "the composed parameters")) from None
