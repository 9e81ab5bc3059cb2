"""Parameters as `dvc exp run -S` composes them."""

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]


@lru_cache
def composed(*overrides: str) -> str:
    """The text of params.yaml under some overrides."""
    from dvc.utils.hydra import compose_and_dump

    conf, plugins = ROOT / "pipeline" / "conf", ROOT / "pipeline" / "plugins"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose_and_dump(path, str(conf), None, "config", str(plugins), list(overrides))
        return path.read_text(encoding="utf-8")
