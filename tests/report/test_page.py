"""The report against hand-written results: what the page says is what the numbers are."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from rich.console import Console

from halfstep.errors import UserError
from halfstep.report import (
    load_curves,
    load_latency,
    load_metrics,
    load_samples,
    rounds_table,
    write_report,
)
from halfstep.report.headline import headline, ratio, reading, warnings_of
from halfstep.report.page import fenced
from halfstep.report.results import Estimate
from halfstep.report.table import format_estimate, summarize

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
SCRIPT = "<script>alert('sample')</script>"


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


def write_samples(path: Path, prefix_length: int, num_steps: list[int], text: str) -> None:
    rows = [(i, n) for n in num_steps for i in range(3)]
    table = pa.table(
        {
            "sample_index": [i for i, _ in rows],
            "num_steps": [n for _, n in rows],
            "token_ids": [[1, 2, 3] for _ in rows],
            "text": [text.format(i=i, n=n) for i, n in rows],
        },
        metadata={b"halfstep": json.dumps({"prefix_length": prefix_length}).encode()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def decode(token_ids: list[int]) -> str:
    """Text of the given prefix of a sample; the only one that these samples have."""
    assert token_ids == [1, 2]
    return "Once upon "


class Project:
    """A finished pipeline run in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.values = {model: model_values(model) for model in MODELS}
        self.latency = latency_values()
        for model in MODELS:
            steps = [63] if model == "ar" else list(STEPS)
            folder = root / "samples" / model
            write_samples(folder / "unconditional.parquet", 0, steps, "sample {i} in {n} " + SCRIPT)
            write_samples(folder / "continuations.parquet", 2, steps, "Once upon a time {i} {n}")
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

    def report(self, name: str = "reports") -> Path:
        metrics = self.metrics()
        write_report(
            self.root / name,
            metrics=metrics,
            latencies=load_latency(self.root / "metrics" / "latency.json"),
            curves=load_curves(self.root / "curves", MODELS),
            samples=load_samples(
                self.root / "samples",
                MODELS,
                num_steps=4,
                num_unconditional=2,
                num_continuations=1,
                decode=decode,
            ),
            params_text="preset: laptop\nseed: 0\n",
            distance="kl_student_teacher",
        )
        return self.root / name


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Project(tmp_path_factory.mktemp("a project")).report()


def test_summary_and_steps_hold_the_values_of_the_metrics(report: Path) -> None:
    summary = json.loads((report / "summary.json").read_text())
    assert set(summary) == set(MODELS)
    assert summary["2"] == {
        "generative_perplexity_4": 32.0,
        "entropy_4": 4.42,
        "mauve_4": 0.9,
        "generative_perplexity_16": 30.0,
        "entropy_16": 4.36,
        "mauve_16": 0.9,
        "cloze_accuracy": 0.25,
        "validation_perplexity": 20.1,
    }
    with (report / "steps.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["model"], row["num_steps"]) for row in rows] == [
        ("ar", "63"), ("0", "4"), ("0", "16"), ("1", "4"), ("1", "16"), ("2", "4"), ("2", "16"),
    ]  # fmt: skip
    assert [float(row["generative_perplexity"]) for row in rows] == [20, 80, 40, 50, 36, 32, 30]


def test_what_was_not_measured_is_a_dash_on_the_page_and_absent_elsewhere(project: Project) -> None:
    for entry in project.values["1"]["samples"]:
        entry["mauve"] = None
    project.values["1"]["cloze"] = None
    project.values["2"]["samples"][0]["mauve"] = estimate(0.9, 0.01, 499)
    folder = project.report()
    assert "499 samples, fewer than 500" in (folder / "index.html").read_text()
    assert "mauve_4" not in json.loads((folder / "summary.json").read_text())["1"]
    assert "cloze_accuracy" not in summarize(project.metrics())["1"]
    with (folder / "steps.csv").open(newline="") as stream:
        assert [row["mauve"] for row in csv.DictReader(stream) if row["model"] == "1"] == ["", ""]
    row = next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| round 1 |"))
    assert row.count("MAUVE –") == 2
    assert row.split(" | ")[-2] == "–"


def test_headline_states_the_ratio_and_its_error(project: Project) -> None:
    verdict, entropy = headline(project.metrics())
    # 80 / 32 = 2.5; relative error sqrt((1/80)^2 + (0.6/32)^2) = 0.02253, times 2.5 = 0.0563.
    assert "round 2 has a lower generative perplexity than the teacher, by a factor of 2.500 ± 0.056" in verdict
    assert "With 4 denoising steps" in verdict
    # 4.42 / 4.40 = 100.45 %
    assert "100.45 ± 0.32 % of the teacher's at 16 denoising steps" in entropy


def test_headline_does_not_call_noise_an_improvement(project: Project) -> None:
    # Combined standard error 5: 9.9 lower is within two of them, 10.1 is not.
    project.values["0"]["samples"][0]["generative_perplexity"] = estimate(80.0, 3.0)
    project.values["2"]["samples"][0]["generative_perplexity"] = estimate(70.1, 4.0)
    assert "is not clearly better than the teacher" in headline(project.metrics())[0]
    project.values["2"]["samples"][0]["generative_perplexity"] = estimate(69.9, 4.0)
    assert "has a lower generative perplexity" in headline(project.metrics())[0]
    project.values["2"]["samples"][0]["generative_perplexity"] = estimate(160.0, 4.0)
    verdict = headline(project.metrics())[0]
    assert "is worse than the teacher" in verdict
    assert "2.000 ± 0.090 times as high" in verdict


def test_headline_without_standard_errors_or_without_a_student_claims_nothing(project: Project) -> None:
    project.values["2"]["samples"][0]["generative_perplexity"] = estimate(1.0, None, 1)
    assert "not clearly better" in headline(project.metrics())[0]
    metrics = {name: values for name, values in project.metrics().items() if name in ("ar", "0")}
    assert "No round was distilled" in headline(metrics)[0]
    assert reading(metrics) == []


def test_entropy_that_falls_with_perplexity_is_named(project: Project) -> None:
    few = project.values["2"]["samples"][0]
    assert "Entropy fell together with perplexity" in reading(project.metrics())[-1]
    assert "It is not below that of the teacher at 16" in reading(project.metrics())[-1]
    few["entropy"] = estimate(4.0, ENTROPY_ERROR, unit="nats")
    assert "paid for with that" in reading(project.metrics())[-1]
    few["entropy"] = estimate(4.5, ENTROPY_ERROR, unit="nats")
    assert "Entropy did not fall" in reading(project.metrics())[-1]


def test_the_gain_is_stated_where_it_lies(project: Project) -> None:
    # 32 / 80 = 0.4 at 4 steps, 30 / 40 = 0.75 at 16.
    assert re.search(r"0\.4000 ± 0\.0090 at 4 .* 0\.750 ± 0\.014 at 16", reading(project.metrics())[0])


def test_few_mauve_samples_are_warned_of(project: Project) -> None:
    assert warnings_of(project.metrics()) == []
    project.values["1"]["samples"][0]["mauve"] = estimate(0.9, 0.01, 499)
    assert "499 samples, fewer than 500" in warnings_of(project.metrics())[0]


def test_page_escapes_samples_and_loads_nothing(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert SCRIPT not in page
    assert "<script" not in page
    assert "sample 0 in 4 &lt;script&gt;" in page
    assert re.findall(r"""(?:src|href)=["'](?!data:image/png;base64,)""", page) == []
    assert not re.search(r"url\(|@import|https?://", page)


def test_page_never_shows_perplexity_without_entropy(report: Path) -> None:
    page = (report / "index.html").read_text()
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    cells = re.findall(r"<td>(.*?)</td>", table)
    perplexities = [cell for cell in cells if cell != "–" and "below" in cell]
    assert len(perplexities) == 3 * len(STEPS) + 2
    assert all("entropy 4." in cell for cell in perplexities)
    assert table.count("≤ 20.10 ± 0.20") == 3


def test_continuations_show_what_was_given(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert page.count("<mark>Once upon </mark>a time 0 4") == 3
    assert "<mark>Once upon </mark>a time 0 63" in page


def test_markdown_has_the_same_headline_and_its_figures(report: Path, project: Project) -> None:
    page, markdown = ((report / name).read_text() for name in ("index.html", "README.md"))
    for sentence in headline(project.metrics()):
        assert sentence in markdown
        assert sentence.replace("'", "&#39;") in page
    linked = re.findall(r"!\[.*\]\((figures/.*\.png)\)", markdown)
    assert linked == [f"figures/{name}.png" for name in ("steps", "latency", "mauve", "cloze", "training")]
    assert all((report / name).is_file() for name in linked)


def test_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a ``` b") == "````text\na ``` b\n````"


def test_figures_show_something_and_come_out_the_same(report: Path, project: Project) -> None:
    kept = project.root / "again" / "gpu" / "index.html"
    kept.parent.mkdir(parents=True)
    kept.write_text("of another run")
    again = project.report("again")
    assert kept.read_text() == "of another run"
    figures = sorted(report.glob("figures/*.png"))
    assert len(figures) == 5
    for figure in figures:
        assert figure.read_bytes() == (again / "figures" / figure.name).read_bytes()
        pixels = imread(figure)[..., :3]
        assert (pixels.min(axis=2) < 0.9).mean() > 0.01, "an empty page"
        # Coloured pixels are the data: axes and text are grey.
        assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 0.2).sum() > 200
    for name in ("index.html", "README.md", "steps.csv", "summary.json"):
        assert (report / name).read_bytes() == (again / name).read_bytes()


def test_figures_without_data_become_a_sentence(project: Project) -> None:
    for values in project.values.values():
        values["cloze"] = None
        for entry in values["samples"]:
            entry["mauve"] = None
    project.latency["denoiser"] = [entry | {"num_steps": 5} for entry in project.latency["denoiser"][:1]]
    for path in (project.root / "curves").iterdir():
        path.write_text("step,loss,learning_rate,grad_norm,valid_loss\n")
    folder = project.report()
    assert [path.name for path in (folder / "figures").iterdir()] == ["steps.png"]
    for name in ("index.html", "README.md"):
        text = (folder / name).read_text()
        for sentence in (
            "no cloze passages",
            "MAUVE was not measured",
            "both sampled and timed",
            "No model was trained",
        ):
            assert sentence in text
        assert "figures/cloze.png" not in text


def test_latency_is_per_sample(project: Project) -> None:
    project.metrics()
    latencies = load_latency(project.root / "metrics" / "latency.json")
    # 0.04 s per step for a batch of 8.
    assert [latency.seconds for latency in latencies.denoiser] == pytest.approx([0.02, 0.08])
    assert latencies.autoregressive.seconds == pytest.approx(0.07)


def test_missing_or_foreign_files_are_named(project: Project) -> None:
    project.metrics()
    path = project.root / "metrics" / "1.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"1\.json does not hold .*'cloze'.* dvc repro"):
        load_metrics(path.parent, MODELS)
    path.unlink()
    with pytest.raises(UserError, match=r"1\.json is not there.*dvc repro"):
        load_metrics(path.parent, MODELS)
    (project.root / "curves" / "2.csv").write_text("step,loss\n1,abc\n")
    with pytest.raises(UserError, match=r"2\.csv is not a training curve"):
        load_curves(project.root / "curves", MODELS)
    with pytest.raises(UserError, match=r"unconditional\.parquet is not there"):
        load_samples(project.root / "none", ["0"], num_steps=4, num_unconditional=1, num_continuations=1, decode=decode)


def test_terminal_table_shows_the_values(project: Project) -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(rounds_table(project.metrics()))
    shown = captured.get()
    for text in ("round 2", "32.00±0.60", "H 4.420", "25.0±3.0 %", "≤20.10±0.20", "perplexity 18.00 ± 0.20"):
        assert text in shown


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.123, "12.35 ± 0.12"),
        (12.3456, 1.23, "12.3 ± 1.2"),
        (12345.6, 123.0, "12346 ± 123"),
        (0.123456, None, "0.1235"),
        (0.5, 0.0, "0.5"),
        (23456.7, None, "23457"),
    ],
)
def test_estimates_have_two_digits_of_their_error(value: float, error: float | None, text: str) -> None:
    assert format_estimate(Estimate(value, error, 10, "1")) == text


def test_a_missing_estimate_is_a_dash() -> None:
    assert format_estimate(None) == "–"


def test_ratio_of_equals_has_root_two_times_the_relative_error() -> None:
    one = Estimate(10.0, 0.1, 5, "1")
    assert ratio(one, one).value == 1.0
    assert ratio(one, one).standard_error == pytest.approx(0.01 * 2**0.5)
