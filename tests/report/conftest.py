"""Hand-written results of a small run, as the stages would have left them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halfstep.report import figures
from halfstep.report.page import write_report
from halfstep.report.results import load_curves, load_latency, load_metrics, load_stage_times
from halfstep.report.samples import load_samples, tokens_together

MODELS = ["ar", "0", "1", "2"]
STEPS = (4, 16)
# Teacher and students at 4 and 16 steps: (generative perplexity, its standard error).
PERPLEXITY = {
    "0": ((80.0, 1.0), (40.0, 0.5)),
    "1": ((50.0, 0.8), (36.0, 0.5)),
    "2": ((32.0, 0.6), (30.0, 0.4)),
}
ENTROPY = {"0": (4.50, 4.40), "1": (4.45, 4.38), "2": (4.42, 4.36)}
ENTROPY_ERROR = 0.01


def estimate(value: float, error: float | None = None, count: int = 1024, unit: str = "1") -> dict[str, Any]:
    return {"value": value, "standard_error": error, "count": count, "unit": unit}


def model_values(model: str) -> dict[str, Any]:
    is_ar = model == "ar"
    entries = [
        {
            "num_steps": 63 if is_ar else steps,
            "nfe": estimate(63 if is_ar else steps - 0.5),
            "generative_perplexity": estimate(*((20.0, 0.3) if is_ar else PERPLEXITY[model][i])),
            "entropy": estimate(4.3 if is_ar else ENTROPY[model][i], ENTROPY_ERROR, unit="nats"),
            "mauve": estimate(0.9, 0.01),
            "num_truncated": 0,
        }
        for i, steps in enumerate(STEPS[:1] if is_ar else STEPS)
    ]
    return {
        "model": model,
        "kind": "autoregressive" if is_ar else "denoiser",
        "round_index": None if is_ar else int(model),
        "seed": 0,
        "num_parameters": 1000,
        "validation": {
            "nll_per_token": estimate(3.0, 0.01, unit="nats"),
            "perplexity": estimate(20.1, 0.2),
            "is_bound": not is_ar,
        },
        "loss_by_time": None
        if is_ar
        else [
            {"t_low": 0.0, "t_high": 0.5, "nats_per_token": estimate(2.0 + 0.1 * int(model), 0.01, unit="nats")},
            {"t_low": 0.5, "t_high": 1.0, "nats_per_token": estimate(4.0, 0.01, unit="nats")},
        ],
        "cloze": {"accuracy": estimate(0.25, 0.03, 200), "perplexity": estimate(9.0, 1.0, 200)},
        "samples": entries,
        "scorer": {"name": "models/ar", "retokenized": False},
        "mauve_settings": {},
        "data": {
            "generative_perplexity": estimate(18.0, 0.2),
            "entropy": estimate(4.41, ENTROPY_ERROR, unit="nats"),
        },
    }


def latency_values() -> dict[str, Any]:
    def entry(seconds: float) -> dict[str, Any]:
        timed = estimate(seconds, None, 5, "seconds")
        return {"seconds": timed, "seconds_min": 0.9 * seconds, "seconds_max": 1.2 * seconds}

    return {
        "device": "cpu",
        "num_threads": 2,
        "dtype": "fp32",
        "torch": "2.9.0",
        "batch_size": 8,
        "length": 64,
        "num_parameters": {"denoiser": 1000, "autoregressive": 1000},
        "denoiser": [
            {"num_steps": n, "nfe": float(n), "tokens_per_second": 5000.0 / n, **entry(0.04 * n)} for n in STEPS
        ],
        "autoregressive": {"nfe": 63.0, "kv_cache": True, "tokens_per_second": 900.0, **entry(0.56)},
    }


HOSTILE = (
    """</script><script>window.ran = 1</script><img src=x onerror="window.ran = 1"><svg onload=window.ran=1>'"&lt;$x"""
)
"""Text that would run a script wherever it stood unescaped in a page."""
WORDS = ["Once", " upon", " a", " time", " <script>alert('sample')</script>", " there", " was", " one"]


def decode(token_ids: list[int]) -> str:
    """Text of the made-up tokens, each a word."""
    return "".join(WORDS[token_id] for token_id in token_ids)


def write_samples(path: Path, prefix_length: int, num_steps: list[int], *, is_autoregressive: bool = False) -> None:
    """Three samples of eight tokens at every number of steps, of which two tokens unmask in each of the first steps."""
    rows = [(i, n) for n in num_steps for i in range(3)]
    tokens = [[0, 1, *((j + i) % 6 + 2 for j in range(6))] for i, _ in rows]
    unmask = [
        [
            0 if j < prefix_length else (j + 1 - prefix_length if is_autoregressive else min(j // 2 + 1, n))
            for j in range(8)
        ]
        for _, n in rows
    ]
    table = pa.table(
        {
            "sample_index": [i for i, _ in rows],
            "num_steps": [n for _, n in rows],
            "nfe": [min(n, 4) for _, n in rows],
            "token_ids": tokens,
            "unmask_step": unmask,
            "text": [decode(ids) for ids in tokens],
        },
        metadata={b"halfstep": json.dumps({"prefix_length": prefix_length}).encode()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


class Project:
    """A finished pipeline run in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.values = {model: model_values(model) for model in MODELS}
        self.latency = latency_values()
        for model in MODELS:
            steps = [63] if model == "ar" else list(STEPS)
            folder = root / "samples" / model
            write_samples(folder / "unconditional.parquet", 0, steps, is_autoregressive=model == "ar")
            write_samples(folder / "continuations.parquet", 2, steps, is_autoregressive=model == "ar")
            (root / "curves").mkdir(exist_ok=True)
            (root / "curves" / f"{model}.csv").write_text(
                "step,loss,learning_rate,grad_norm,valid_loss\n1,5.0,0.1,1.0,\n2,4.0,0.1,1.0,4.5\n"
            )

    def metrics(self) -> Any:
        folder = self.root / "metrics"
        folder.mkdir(exist_ok=True)
        for model, values in self.values.items():
            (folder / f"{model}.json").write_text(json.dumps(values))
        (folder / "latency.json").write_text(json.dumps(self.latency))
        return load_metrics(folder, MODELS)

    def report(
        self,
        name: str = "reports",
        preset: str = "laptop",
        params_text: str = "preset: laptop\nseed: 0\n",
        decode: Callable[[list[int]], str] = decode,
    ) -> Path:
        metrics = self.metrics()
        write_report(
            self.root / name,
            metrics=metrics,
            latencies=load_latency(self.root / "metrics" / "latency.json"),
            curves=load_curves(self.root / "curves", MODELS),
            samples=load_samples(
                self.root / "samples", MODELS, num_unconditional=2, num_continuations=1, decode=decode
            ),
            together=tokens_together(self.root / "samples", "0"),
            stages=load_stage_times(
                MODELS,
                tokens_path=self.root / "data" / "tokens",
                curves_path=self.root / "curves",
                samples_path=self.root / "samples",
                metrics_path=self.root / "metrics",
            ),
            params_text=params_text,
            distance="kl_student_teacher",
            preset=preset,
            paired_ratio=None,
        )
        return self.root / name


def remembering(render: Callable[..., bytes], drawn: dict[str, bytes]) -> Callable[..., bytes]:
    """`render`, but what stands in `drawn` is not drawn again: seven figures in three versions take seconds."""

    def remember(*arguments: Any) -> bytes:
        what = repr(arguments)
        if what not in drawn:
            drawn[what] = render(*arguments)
        return drawn[what]

    return remember


@pytest.fixture(scope="package", autouse=True)
def drawn_before() -> Iterator[dict[str, bytes]]:
    """Figures by what is drawn: the same one is not drawn again for another test, unless that clears this."""
    drawn: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "render", remembering(figures.render, drawn))
        yield drawn


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def make_estimate() -> Callable[..., dict[str, Any]]:
    """`estimate`: an estimate as it stands in a metrics file."""
    return estimate


@pytest.fixture(scope="package")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Project(tmp_path_factory.mktemp("a project")).report()


@pytest.fixture(scope="package")
def hostile() -> str:
    """`HOSTILE`."""
    return HOSTILE


@pytest.fixture(scope="package")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which everything that comes from a corpus, a sample or a parameter is `HOSTILE`."""
    project = Project(tmp_path_factory.mktemp("hostile"))
    for values in project.values.values():
        values["scorer"]["name"] = HOSTILE
        perplexity, bits = estimate(9.0, 0.1), estimate(1.0, 0.1)
        values["likelihood_on"] = {HOSTILE: {"perplexity": perplexity, "bits_per_byte": bits, "is_bound": False}}
        values["downstream"] = {HOSTILE: {"metrics": {HOSTILE: estimate(0.5, 0.1)}}}
    project.latency |= {"device": HOSTILE, "dtype": HOSTILE, "torch": HOSTILE}
    return project.report(
        preset=HOSTILE, params_text=f"preset: {HOSTILE}\n", decode=lambda ids: "".join(HOSTILE for _ in ids)
    )
