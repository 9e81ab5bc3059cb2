"""Hand-written results of a small run, as the stages would have left them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.frontier import FrontierRow, write_frontier
from halfstep.metrics.record import Record, Row, write_record
from halfstep.report import figures
from halfstep.report.experiment import Experiment, load_experiment
from halfstep.report.page import write_report
from halfstep.settings.graph import frontiers_of, schedule_of

MODELS = ["ar", "0", "1", "2"]
# Teacher and students at 4 and 16 steps: generative perplexity, its standard error, entropy.
MEASURED = {
    "0": {4: (80.0, 1.0, 4.50), 16: (40.0, 0.5, 4.40)},
    "1": {4: (50.0, 0.8, 4.45), 16: (36.0, 0.5, 4.38)},
    "2": {4: (32.0, 0.6, 4.42), 16: (30.0, 0.4, 4.36)},
}
# The text's entropy is 4.41. Perplexity at that entropy by sampler and number of steps, each of which is an evaluation.
AT_ENTROPY = {
    "ar": {("autoregressive", 63): 20.0},
    "0": {("ancestral", 4): 90.0, ("ancestral", 16): 40.0, ("ordered", 4): 60.0, ("ordered", 16): 22.0},
    "1": {("ancestral", 4): 60.0, ("ordered", 4): 55.0},
    "2": {("ancestral", 4): 50.0, ("ordered", 4): 48.0, ("ordered", 16): 22.5},
    "ar-1": {("autoregressive", 63): 21.0},
}
HOSTILE = (
    """</script><script>window.ran = 1</script><img src=x onerror="window.ran = 1"><svg onload=window.ran=1>'"&lt;$x"""
)
"""Text that would run a script wherever it stood unescaped in a page."""
WORDS = ["Once", " upon", " a", " time", " <script>alert('sample')</script>", " there", " was", " one"]


def write_samples(path: Path, prefix_length: int, num_steps: list[int | None]) -> None:
    """Three samples of eight tokens in every setting, of which two tokens unmask in each of the first steps."""
    rows: dict[str, list[Any]] = {}
    for steps in num_steps:
        for i in range(3):
            row = {
                "sampler": "ancestral" if steps else "autoregressive",
                "setting": f"num_steps={steps}" if steps else "",
                "temperature": 1.0,
                "num_steps": steps,
                "sample_index": i,
                "prefix_row": -1,
                "nfe": min(steps or 8 - prefix_length, 4),
                "token_ids": [0, 1, *((j + i) % 6 + 2 for j in range(6))],
                "unmask_step": [
                    0 if j < prefix_length else min(j // 2 + 1, steps) if steps else j + 1 - prefix_length
                    for j in range(8)
                ],
                "text": "",
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {b"halfstep": json.dumps({"prefix_length": prefix_length}).encode()}
    pq.write_table(pa.table(rows).replace_schema_metadata(metadata), path)


def write_curves(
    folder: Path, model: str, found: dict[tuple[str, int], float], *, depth: float = 1.0, entropy: float = 4.41,
    noise: float = 0.0, seconds: float = 0.01,
) -> None:  # fmt: skip
    """Samples of a model at three temperatures, two of which have an entropy on either side of `entropy`.

    Args:
        found: by sampler and number of steps the perplexity at that entropy.
        depth: of the network over that of the first teacher.
        noise: by how much the model's own samples differ, beside what they have in common with other models'.
        seconds: of an evaluation.
    """
    own, common = np.random.default_rng(len(model) + ord(model[-1])), np.tile([0.1, -0.1], 20)
    rows, samples = [], []
    for (sampler, steps), perplexity in found.items():
        setting = "" if sampler == "autoregressive" else f"num_steps={steps}"
        setting += ",score=entropy" if sampler == "ordered" else ""
        deviations = common + noise * own.permutation(np.tile([1.0, -1.0], 20))
        for temperature, higher in ((0.8, -0.2), (1.0, 0.2), (1.2, 0.6)):
            # Log perplexity rises twice as fast as entropy.
            nll = np.log(perplexity) + 2 * higher
            row = FrontierRow(
                model=model,
                sampler=sampler,
                setting=setting,
                temperature=temperature,
                evaluations=steps,
                equivalent_evaluations=steps * depth,
                seconds_per_sample=steps * seconds,
                perplexity=float(np.exp(nll)),
                entropy=entropy + higher,
                mauve=0.9,
                distinct_2=0.5,
                self_bleu=30.0,
                num_samples=len(deviations),
            )
            rows.append(row)
            of_way = (sampler, setting, temperature)
            samples += [(*of_way, i, 10 * (nll + each), 10, entropy + higher) for i, each in enumerate(deviations)]
    folder.mkdir(parents=True)
    write_frontier(folder, rows, samples)


class Project:
    """A finished pipeline run in a folder; `rows` and `latency` may be changed before it is read."""

    def __init__(self, root: Path, words: list[str] = WORDS) -> None:
        self.root = root
        self.rows: dict[str, dict[tuple[str, str | None, str | None], Estimate]] = {model: {} for model in MODELS}
        self.scorer = "models/ar"
        self.latency: dict[str, Any] = {
            "device": "cpu", "num_threads": 2, "dtype": "fp32", "torch": "2.9.0", "batch_size": 8, "length": 64,
            "num_parameters": {"denoiser": 1000, "autoregressive": 1000},
            "denoiser": [
                {"sampler": "ancestral", "setting": f"num_steps={n}", "nfe": float(n), **timed(0.04 * n)}
                for n in (4, 16)
            ],
            "autoregressive": {"nfe": 63.0, **timed(0.56)},
        }  # fmt: skip
        for model in MODELS:
            self.set(model, "validation_perplexity", 20.1, 0.2)
            self.set(model, "cloze_accuracy", 0.25, 0.03, count=200)
            self.set(model, "cloze_perplexity", 9.0, 1.0, count=200)
            self.set(model, "data_generative_perplexity", 18.0, 0.2)
            self.set(model, "data_entropy", 4.41, 0.01, unit="nats")
            for steps, (perplexity, error, entropy) in MEASURED.get(model, {None: (20.0, 0.3, 4.3)}).items():
                self.set(model, "nfe", steps - 0.5 if steps else 63.0, steps=steps)
                self.set(model, "generative_perplexity", perplexity, error, steps=steps)
                self.set(model, "entropy", entropy, 0.01, steps=steps, unit="nats")
                self.set(model, "mauve", 0.9, 0.01, steps=steps)
            for kind, prefix_length in (("unconditional", 0), ("continuations", 2)):
                path = root / "samples" / model / f"{kind}.parquet"
                write_samples(path, prefix_length, [None] if model == "ar" else [4, 16])
            (root / "metrics").mkdir(exist_ok=True)
            (root / "curves").mkdir(exist_ok=True)
            (root / "curves" / f"{model}.csv").write_text(
                "step,loss,learning_rate,grad_norm,valid_loss\n1,5.0,0.1,1.0,\n2,4.0,0.1,1.0,4.5\n"
            )
        for model, found in AT_ENTROPY.items():
            self.set_curves(model, found)
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
        backend.decoder = decoders.Fuse()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
        tokenizer.save_pretrained(root / "data" / "tokenizer")
        self.write_params()

    def set(
        self, model: str, metric: str, value: float, error: float | None = None, *,
        steps: int | None = None, drawn: tuple[str, str] | None = None, count: int = 1024, unit: str = "1",
    ) -> None:  # fmt: skip
        """Set a measured value; of samples at `steps`, of an autoregressive model's, or of those drawn otherwise."""
        if metric in ("nfe", "generative_perplexity", "entropy", "mauve", "self_bleu"):
            drawn = drawn or (("ancestral", f"num_steps={steps}") if steps else ("autoregressive", ""))
        self.rows[model][metric, *(drawn or (None, None))] = Estimate(value, error, count, unit)

    def set_curves(self, model: str, found: dict[tuple[str, int], float], **options: float) -> None:
        """Set what a model was drawn in: see `write_curves`."""
        shutil.rmtree(self.root / "frontier" / model, ignore_errors=True)
        depth = 0.25 if model == "ar-1" else 1.0
        write_curves(self.root / "frontier" / model, model, found, **{"depth": depth, "noise": 0.01, **options})

    def forget(self, *metrics: str, models: list[str] = MODELS) -> None:
        """Metrics were not measured."""
        for model in models:
            self.rows[model] = {key: value for key, value in self.rows[model].items() if key[0] not in metrics}

    def write_params(self, **changes: Any) -> None:
        """The project's parameters with two rounds and some values changed, by dotted name with __ for dots."""
        values = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
        schedule = {name: entry.model_dump() for name, entry in schedule_of(2).items()}
        frontiers = frontiers_of(len(changes.get("models", MODELS)) - 2, [1])
        usual = {"rounds": 2, "schedule": schedule, "models": MODELS, "rivals": [1], "frontiers": frontiers}
        usual["model__num_blocks"] = 4
        for name, value in {**usual, **changes}.items():
            *groups, last = name.split("__")
            place = values
            for group in groups:
                place = place[group]
            place[last] = value
        (self.root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def write_metrics(self) -> None:
        for model, values in self.rows.items():
            rows = tuple(Row(metric, value, *drawn) for (metric, *drawn), value in values.items())
            losses = () if model == "ar" else ((0.0, 0.5, 2.0 + 0.1 * int(model)), (0.5, 1.0, 4.0))
            buckets = tuple({"t_low": a, "t_high": b, "value": v, "error": 0.01, "count": 9} for a, b, v in losses)
            kind, round_index = ("autoregressive", None) if model == "ar" else ("denoiser", int(model))
            record = Record(model, kind, round_index, 1000, self.scorer, False, rows, buckets, {})
            write_record(self.root / "metrics" / f"{model}.json", record)
        (self.root / "metrics" / "latency.json").write_text(json.dumps(self.latency))

    def experiment(self, name: str = "workspace", **changes: Any) -> Experiment:
        """The run as it is read; `changes` of its parameters."""
        self.write_metrics()
        if changes:
            self.write_params(**changes)
        return load_experiment(name, self.root)

    def report(self, name: str = "reports") -> Path:
        write_report(self.root / name, self.experiment())
        return self.root / name


def timed(seconds: float) -> dict[str, Any]:
    ends = {"seconds_min": 0.9 * seconds, "seconds_max": 1.2 * seconds}
    return {"seconds": {"value": seconds}, "tokens_per_second": 5.0, **ends}


@pytest.fixture(autouse=True)
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures, which take seconds, are drawn only for fixtures that tests share and where `drawn` is asked for."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "render", lambda chart, file_format: b"<svg/>")


@pytest.fixture
def drawn() -> None:
    """Figures are drawn."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def make_project() -> type[Project]:
    """`Project`."""
    return Project


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
    project = Project(tmp_path_factory.mktemp("hostile"), [f"{HOSTILE}{i}" for i in range(8)])
    for model in MODELS:
        project.set(model, f"likelihood_on.{HOSTILE}.perplexity", 9.0, 0.1)
        project.set(model, f"downstream.{HOSTILE}.{HOSTILE}", 0.5, 0.1)
        for metric in ("nfe", "generative_perplexity", "mauve", HOSTILE):
            project.set(model, metric, 9.0, 0.1, drawn=(HOSTILE, HOSTILE))
    project.scorer = HOSTILE
    project.latency |= {"device": HOSTILE, "dtype": HOSTILE, "torch": HOSTILE}
    project.write_params(preset=HOSTILE)
    return project.report()
