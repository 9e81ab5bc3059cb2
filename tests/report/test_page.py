"""The report against hand-written results: what the page says is what the numbers are."""

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread
from rich.console import Console

from halfstep.metrics.estimate import Estimate
from halfstep.report.headline import headline, ratio, reading, warnings_of
from halfstep.report.page import fenced
from halfstep.report.results import load_curves, load_latency, load_metrics
from halfstep.report.samples import load_samples
from halfstep.report.table import format_estimate, rounds_table, summarize
from halfstep.run.errors import UserError

MODELS = ["ar", "0", "1", "2"]
STEPS = (4, 16)
ENTROPY_ERROR = 0.01
FIGURES = ("latency", "steps", "cloze", "mauve", "loss_by_time", "unmasking", "training")


def estimate(value: float, error: float | None = None, count: int = 1024, unit: str = "1") -> dict[str, Any]:
    return {"value": value, "standard_error": error, "count": count, "unit": unit}


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


def test_what_was_not_measured_is_a_dash_on_the_page_and_absent_elsewhere(project: Any) -> None:
    for entry in project.values["1"]["samples"]:
        entry["mauve"] = None
    project.values["1"]["cloze"] = None
    project.values["2"]["samples"][0]["mauve"] = estimate(0.9, 0.01, 999)
    folder = project.report()
    assert "999 samples, fewer than 1000" in (folder / "index.html").read_text()
    assert "mauve_4" not in json.loads((folder / "summary.json").read_text())["1"]
    assert "cloze_accuracy" not in summarize(project.metrics())["1"]
    with (folder / "steps.csv").open(newline="") as stream:
        assert [row["mauve"] for row in csv.DictReader(stream) if row["model"] == "1"] == ["", ""]
    row = next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| round 1 |"))
    assert row.count("MAUVE –") == 2
    assert row.split(" | ")[-2] == "–"


def test_headline_states_the_ratio_and_its_error(project: Any) -> None:
    verdict, entropy = headline(project.metrics())
    # 80 / 32 = 2.5; relative error sqrt((1/80)^2 + (0.6/32)^2) = 0.02253, times 2.5 = 0.0563.
    assert "round 2 has a lower generative perplexity than the teacher, by a factor of 2.500 ± 0.056" in verdict
    assert "With 4 denoising steps" in verdict
    # 4.42 / 4.40 = 100.45 %
    assert "100.45 ± 0.32 % of the teacher's at 16 denoising steps" in entropy


def test_headline_does_not_call_noise_an_improvement(project: Any) -> None:
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


def test_headline_goes_by_the_interval_of_paired_samples_where_there_is_one(project: Any) -> None:
    for interval, words in (
        (
            (0.7, 0.9),
            "has a lower generative perplexity than the teacher, 0.800 times the teacher's (95 % interval 0.700",
        ),
        ((0.7, 1.1), "is not clearly better than the teacher: its generative perplexity is 0.800 times"),
        ((1.1, 1.2), "is worse than the teacher"),
    ):
        assert words in headline(project.metrics(), Estimate(0.8, None, 40, "1", interval))[0]
    # Without an interval the standard errors decide.
    assert "by a factor of 2.500" in headline(project.metrics(), Estimate(0.8, None, 1, "1"))[0]


def test_headline_without_standard_errors_or_without_a_student_claims_nothing(project: Any) -> None:
    project.values["2"]["samples"][0]["generative_perplexity"] = estimate(1.0, None, 1)
    assert "not clearly better" in headline(project.metrics())[0]
    metrics = {name: values for name, values in project.metrics().items() if name in ("ar", "0")}
    assert "No round was distilled" in headline(metrics)[0]
    assert reading(metrics) == []


def test_entropy_that_falls_with_perplexity_is_named(project: Any) -> None:
    few = project.values["2"]["samples"][0]
    assert "Entropy fell together with perplexity" in reading(project.metrics())[-1]
    assert "It is not below that of the teacher at 16" in reading(project.metrics())[-1]
    few["entropy"] = estimate(4.0, ENTROPY_ERROR, unit="nats")
    assert "paid for with that" in reading(project.metrics())[-1]
    few["entropy"] = estimate(4.5, ENTROPY_ERROR, unit="nats")
    assert "Entropy did not fall" in reading(project.metrics())[-1]


def test_the_gain_is_stated_where_it_lies(project: Any) -> None:
    # 32 / 80 = 0.4 at 4 steps, 30 / 40 = 0.75 at 16.
    assert re.search(r"0\.4000 ± 0\.0090 at 4 .* 0\.750 ± 0\.014 at 16", reading(project.metrics())[0])


def test_few_mauve_samples_are_warned_of(project: Any) -> None:
    assert warnings_of(project.metrics()) == []
    project.values["1"]["samples"][0]["mauve"] = estimate(0.9, 0.01, 999)
    assert "999 samples, fewer than 1000" in warnings_of(project.metrics())[0]


def test_page_escapes_samples_and_loads_nothing(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert "<script>alert" not in page
    assert "\\u003cscript\\u003ealert" in page
    assert re.findall(r"""(?:src|srcset|href)=["'](?!data:|#)""", page) == []
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


class _Elements(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_adds_no_element_to_the_page(hostile_report: Path, report: Path, hostile: str) -> None:
    """The same elements as of a harmless report, apart from rows of tables; and the text stands there as text."""
    ours, harmless = (_Elements((folder / "index.html").read_text()) for folder in (hostile_report, report))
    assert set(ours.elements) <= set(harmless.elements) | {("table", ("class",))}
    for tag in ("script", "img", "svg", "details"):
        count = [name for name, _ in ours.elements].count(tag)
        assert count == [name for name, _ in harmless.elements].count(tag)
    assert not [name for _, names in ours.elements for name in names if name.startswith("on")]
    # The scorer, the device, two rows of texts, the task, and the parameters.
    assert ours.text.count(hostile) >= 6


def test_hostile_text_adds_no_element_to_the_markdown(hostile_report: Path, report: Path) -> None:
    def outside_of_code(folder: Path) -> str:
        return re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", (folder / "README.md").read_text())

    def tags(folder: Path) -> set[str]:
        return set(re.findall(r"<[^>\s]*", outside_of_code(folder)))

    assert "onerror" in outside_of_code(hostile_report)
    assert tags(hostile_report) == tags(report)


def test_page_has_landmarks_one_heading_and_named_parts(report: Path) -> None:
    page = (report / "index.html").read_text()
    for landmark in ("header", "nav", "main", "footer"):
        assert len(re.findall(rf"<{landmark}[ >]", page)) == 1
    assert page.count("<h1>") == 1
    ids = re.findall(r"""\bid=["']([^"']+)["']""", page)
    assert len(ids) == len(set(ids))
    for name in re.findall(r"""(?:aria-labelledby|for)=["']([^"']+)["']|href="#([^"]+)\"""", page):
        assert "".join(name) in ids
    for image in re.findall(r"<img [^>]*>", page):
        assert re.search(r'alt="[^"]{20,}"', image)


def test_page_never_shows_perplexity_without_entropy(report: Path) -> None:
    page = (report / "index.html").read_text()
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    cells = re.findall(r"<td>(.*?)</td>", table)
    perplexities = [cell for cell in cells if cell != "–" and "below" in cell]
    assert len(perplexities) == 3 * len(STEPS) + 2
    assert all("entropy 4." in cell for cell in perplexities)
    assert table.count("≤ 20.10 ± 0.20") == 3


def test_continuations_show_what_was_given(report: Path) -> None:
    markdown = (report / "README.md").read_text()
    assert markdown.count("Given:\n\n```text\nOnce upon\n```") == 1
    assert "autoregressive, 63 tokens:" in markdown


def test_markdown_has_the_same_headline_and_its_figures(report: Path, project: Any) -> None:
    page, markdown = ((report / name).read_text() for name in ("index.html", "README.md"))
    for sentence in headline(project.metrics()):
        assert sentence in markdown
        assert sentence.replace("'", "&#39;") in page
    linked = re.findall(r"!\[.*\]\((figures/.*\.png)\)", markdown)
    assert linked == [f"figures/{name}.png" for name in FIGURES]
    assert all((report / name).is_file() for name in linked)


def test_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a ``` b") == "````text\na ``` b\n````"


def test_figures_show_something_and_come_out_the_same(
    report: Path, project: Any, drawn_before: dict[str, bytes]
) -> None:
    drawn_before.clear()
    kept = project.root / "again" / "gpu" / "index.html"
    kept.parent.mkdir(parents=True)
    kept.write_text("of another run")
    again = project.report("again")
    assert kept.read_text() == "of another run"
    figures = sorted(report.glob("figures/*.png"))
    assert [figure.stem for figure in figures] == sorted(FIGURES)
    for figure in figures:
        vector = figure.with_suffix(".svg")
        assert vector.read_bytes() == (again / "figures" / vector.name).read_bytes()
        assert len(list(ElementTree.parse(vector).iter("{http://www.w3.org/2000/svg}path"))) > 20
        assert figure.read_bytes() == (again / "figures" / figure.name).read_bytes()
        pixels = imread(figure)[..., :3]
        assert (pixels.min(axis=2) < 0.9).mean() > 0.01, "an empty page"
        # Coloured pixels are the data: axes and text are grey.
        assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 0.2).sum() > 200
    for name in ("index.html", "README.md", "steps.csv", "summary.json"):
        assert (report / name).read_bytes() == (again / name).read_bytes()


def test_figures_without_data_become_a_sentence(project: Any) -> None:
    for values in project.values.values():
        values["cloze"] = None
        for entry in values["samples"]:
            entry["mauve"] = None
    project.latency["denoiser"] = [entry | {"num_steps": 5} for entry in project.latency["denoiser"][:1]]
    for path in (project.root / "curves").iterdir():
        path.write_text("step,loss,learning_rate,grad_norm,valid_loss\n")
    folder = project.report()
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        "loss_by_time.png", "loss_by_time.svg", "steps.png", "steps.svg", "unmasking.png", "unmasking.svg",
    ]  # fmt: skip
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


def test_latency_is_per_sample(project: Any) -> None:
    project.metrics()
    latencies = load_latency(project.root / "metrics" / "latency.json")
    # 0.04 s per step for a batch of 8.
    assert [latency.seconds for latency in latencies.denoiser] == pytest.approx([0.02, 0.08])
    assert latencies.autoregressive.seconds == pytest.approx(0.07)


def test_missing_or_foreign_files_are_named(project: Any) -> None:
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
        load_samples(project.root / "none", ["0"], num_unconditional=1, num_continuations=1, decode=str)


def test_terminal_table_shows_the_values(project: Any) -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(rounds_table(project.metrics()))
    shown = captured.get()
    for text in ("round 2", "32.00±0.60", "H 4.420", "25.0±3.0 %", "≤20.10±0.20", "perplexity 18.00 ± 0.20"):
        assert text in shown


def nulls_everywhere(values: dict[str, Any]) -> None:
    for entry in values["samples"]:
        entry |= dict.fromkeys(("nfe", "generative_perplexity", "entropy", "mauve"))
    values["validation"] = {"nll_per_token": None, "perplexity": None, "is_bound": True}
    values |= {"cloze": None, "loss_by_time": None, "data": {"generative_perplexity": None, "entropy": None}}


def a_value_is_null(values: dict[str, Any]) -> None:
    values["samples"][0]["generative_perplexity"]["value"] = None


def no_samples(values: dict[str, Any]) -> None:
    values["samples"] = []


def no_entropy(values: dict[str, Any]) -> None:
    values["samples"][0]["entropy"] = None


@pytest.mark.parametrize(
    ("change", "of"),
    [
        (nulls_everywhere, MODELS),
        (nulls_everywhere, ["ar"]),
        (no_samples, MODELS),
        (no_samples, ["0"]),
        (a_value_is_null, ["2"]),
        (no_entropy, ["2"]),
    ],
)
def test_what_is_null_is_stated_and_stops_nothing(
    project: Any, change: Callable[[dict[str, Any]], None], of: list[str]
) -> None:
    for model in of:
        change(project.values[model])
    folder = project.report()
    page = (folder / "index.html").read_text()
    text = re.sub(r"<script.*?</script>|<style.*?</style>|data:[^ \"]*", "", page, flags=re.DOTALL)
    assert not re.search(r"\bNone\b(?!:)|\bnan\b|\binf\b", text)
    if of == MODELS and change in (nulls_everywhere, no_samples):
        for sentence in ("No samples were scored", "MAUVE was not measured"):
            assert sentence in text
    if change is no_entropy and of == ["2"]:
        assert "the perplexity means nothing alone" in text
    console = Console(width=200)
    with console.capture() as captured:
        console.print(rounds_table(project.metrics()))
    assert "teacher" in captured.get()


def test_a_value_that_is_no_number_is_refused_and_named(project: Any) -> None:
    project.values["1"]["samples"][0]["entropy"]["value"] = float("nan")
    with pytest.raises(UserError, match=r"1\.json does not hold .*not finite.*nan"):
        project.metrics()


def test_one_round_and_no_round_have_a_page(project: Any) -> None:
    from halfstep.report.page import write_report

    for models in (["ar", "0", "1"], ["ar", "0"], ["0"]):
        project.metrics()
        write_report(
            project.root / "fewer",
            metrics=load_metrics(project.root / "metrics", models),
            latencies=None,
            curves={},
            samples=[],
            together={},
            stages={"pretrain": None},
            params_text="",
            distance="mse",
            preset="laptop",
            paired_ratio=None,
        )
        page = (project.root / "fewer" / "index.html").read_text()
        assert "Latency was not measured." in page
        assert "No samples were drawn." in page
        assert "restored from cache" in page
        assert ("No round was distilled" in page) == ("1" not in models)


def test_further_metrics_of_samples_are_shown_and_unknown_ones_passed_over(project: Any) -> None:
    project.values["1"]["samples"][0] |= {
        "self_bleu": estimate(12.5, 0.5),
        "distinct_ngrams": {"1": None, "2": 0.25},
        "copied": None,
        "unheard_of": 3,
    }
    folder = project.report()
    page = (folder / "index.html").read_text()
    assert page.count("self-BLEU 12.50 ± 0.50") == 1
    assert page.count("distinct 2-grams 0.25<") == 1
    assert "their self-BLEU, distinct 2-grams." in page
    assert "Further measurements" not in page
    assert "unheard_of" not in page


def test_other_texts_and_tasks_have_a_table_of_their_own(project: Any) -> None:
    project.values["1"]["validation"]["bits_per_byte"] = estimate(1.25, 0.01)
    bound = {"perplexity": estimate(30.5, 0.5), "bits_per_byte": None, "is_bound": True}
    project.values["2"] |= {
        "likelihood_on": {"wiki": bound},
        "downstream": {"arc": {"metrics": {"acc": estimate(0.5)}}},
    }
    text = (project.report() / "README.md").read_text()
    assert "|  | autoregressive | teacher | round 1 | round 2 |" in text
    assert "| validation text: bits per byte | – | – | 1.250 ± 0.010 | – |" in text
    assert "| wiki: perplexity (bound) | – | – | – | 30.50 ± 0.50 |" in text
    assert "| arc: acc | – | – | – | 0.5 |" in text


def test_the_paper_is_quoted_in_its_own_setting_only(project: Any) -> None:
    assert "2410.21035v2" in (project.report("a", "paper") / "index.html").read_text()
    assert "2410.21035v2" not in (project.report("b", "laptop") / "index.html").read_text()


def test_times_of_stages_are_those_of_the_files_at_hand(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfstep.run.stage_times import record_stage

    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setattr("halfstep.run.stage_times.STARTED", -1e6)
    monkeypatch.setattr("halfstep.run.stage_times.time.monotonic", lambda: 234.5 - 1e6)
    record_stage("distill@1", project.root / "curves" / "1.csv")
    rows = re.findall(r"\| (\S+) \| (\S+) \| .*", (project.report() / "README.md").read_text())
    times = dict(rows)
    assert times["distill@1"] == "234.5"
    assert times["distill@2"] == "–"
    assert {"prepare", "pretrain", "baseline", "sample@ar", "evaluate@2", "latency"} <= times.keys()


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
