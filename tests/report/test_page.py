"""The report against hand-written results: what the page says is what the numbers are."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread
from rich.console import Console

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.paired import write_samples_table
from halfstep.metrics.record import read_records
from halfstep.report.experiment import read_curve, read_latency
from halfstep.report.records import format_estimate
from halfstep.report.table import summarize, terminal_tables
from halfstep.report.words import headline, ratio, reading, warnings_of
from halfstep.run.errors import UserError
from halfstep.settings.graph import schedule_of

pytestmark = pytest.mark.stage  # takes seconds
MODELS = ["ar", "0", "1", "2"]
FIGURES = {"latency", "steps", "rounds", "cloze", "loss_by_time", "unmasking", "training"}


def page_of(folder: Path) -> str:
    """The page without its figures, scripts and style."""
    page = (folder / "index.html").read_text()
    return re.sub(r"<script.*?</script>|<style.*?</style>|data:image[^\"]*", "", page, flags=re.DOTALL)


def cells_of(page: str, row: str) -> list[str]:
    """Cells of the first row of a table that begins so."""
    found = re.search(rf'<tr><th scope="row">{re.escape(row)}.*?</tr>', page)
    assert found is not None, row
    return re.findall(r"<td>(.*?)</td>", found[0])


def terminal(project: Any) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(terminal_tables(project.experiment().records))
    return captured.get()


def test_summary_and_steps_hold_the_values_of_the_records(report: Path) -> None:
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
    assert summary["ar"]["generative_perplexity"] == 20
    with (report / "steps.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["model"], row["num_steps"]) for row in rows] == [
        ("ar", ""), ("0", "4"), ("0", "16"), ("1", "4"), ("1", "16"), ("2", "4"), ("2", "16"),
    ]  # fmt: skip
    assert [float(row["generative_perplexity"]) for row in rows] == [20, 80, 40, 50, 36, 32, 30]


def test_any_sampler_has_a_column_and_any_metric_a_place(project: Any) -> None:
    drawn = ("confidence", "threshold=0.9")
    project.set("2", "nfe", 12.5, drawn=drawn)
    project.set("2", "generative_perplexity", 33.0, 1.0, drawn=drawn)
    project.set("2", "entropy", 4.4, 0.01, drawn=drawn)
    project.set("2", "unheard_of", 0.125, drawn=drawn)
    project.set("1", "bits_per_byte", 1.25, 0.01)
    project.set("ar", "downstream.arc.acc", 0.5)
    folder = project.report()
    page = page_of(folder)
    assert ">confidence threshold=0.9</th>" in page
    assert re.search(r"33\.0 ± 1\.0.*entropy 4\.400 ± 0\.010.*MAUVE –.*12\.5 evaluations", cells_of(page, "round 2")[2])
    assert cells_of(page, "round 1")[2] == "–"
    assert cells_of(page, "bits_per_byte") == ["–", "–", "≤ 1.250 ± 0.010", "–"]
    assert cells_of(page, "downstream.arc.acc") == ["0.5", "–", "–", "–"]
    assert re.search(r'round 2<span class="below">confidence threshold=0.9</span></th><td>0.125</td>', page)
    with (folder / "steps.csv").open(newline="") as stream:
        row = list(csv.DictReader(stream))[-1]
    assert (row["sampler"], row["setting"], row["num_steps"], row["unheard_of"]) == (*drawn, "", "0.125")
    assert summarize(project.experiment().records)["2"]["generative_perplexity_confidence_threshold=0.9"] == 33
    assert re.search(r"round 2 +33\.0±1\.0", terminal(project))


def test_what_was_not_measured_is_a_dash_on_the_page_and_absent_elsewhere(project: Any) -> None:
    project.forget("mauve", "cloze_accuracy", models=["1"])
    folder = project.report()
    summary = json.loads((folder / "summary.json").read_text())
    assert not {"mauve_4", "cloze_accuracy"} & set(summary["1"])
    with (folder / "steps.csv").open(newline="") as stream:
        assert [row["mauve"] for row in csv.DictReader(stream) if row["model"] == "1"] == ["", ""]
    cells = cells_of(page_of(folder), "round 1")
    assert [cell.count("MAUVE –") for cell in cells] == [1, 1, 0, 0, 0]
    assert cells[-2] == "–"


def test_headline_states_the_ratio_and_its_error(project: Any) -> None:
    verdict, entropy = headline(project.experiment())
    # 80 / 32 = 2.5; relative error sqrt((1/80)^2 + (0.6/32)^2) = 0.02253, times 2.5 = 0.0563.
    assert "With 4 denoising steps" in verdict
    assert "lower generative perplexity than the teacher, by a factor of 2.500 ± 0.056" in verdict
    # 4.42 / 4.40 = 100.45 %
    assert "100.45 ± 0.32 % of the teacher's at 16 denoising steps" in entropy


def test_headline_does_not_call_noise_an_improvement(project: Any) -> None:
    # Combined standard error 5: 9.9 lower is within two of them, 10.1 is not.
    project.set("0", "generative_perplexity", 80.0, 3.0, steps=4)
    for value, words in ((70.1, "not clearly better"), (69.9, "has a lower"), (160.0, "2.000 ± 0.090 times as high")):
        project.set("2", "generative_perplexity", value, 4.0, steps=4)
        assert words in headline(project.experiment())[0]


def test_headline_goes_by_the_interval_of_paired_samples_where_there_is_one(project: Any) -> None:
    def verdict(*nlls: float) -> str:
        """Of samples of one token, which cost the teacher 2 nats."""
        for model, costs in (("0", [2.0] * len(nlls)), ("2", nlls)):
            rows = [("ancestral", "num_steps=4", 1.0, i, nats, 1, 4.0) for i, nats in enumerate(costs)]
            write_samples_table(project.root / "metrics" / model / "samples.csv", rows)
        return headline(project.experiment())[0]

    # exp(-0.25) = 0.779, exp(0.25) = 1.284
    assert "has a lower generative perplexity than the teacher, 0.779 times" in verdict(1.75, 1.7, 1.8, 1.75)
    assert "is worse than the teacher" in verdict(2.25, 2.2, 2.3, 2.25)
    assert "not clearly better than the teacher: its generative perplexity is 1.000" in verdict(1.5, 2.5, 1.7, 2.3)
    # Without an interval the standard errors decide.
    assert "by a factor of 2.500" in verdict(1.0)


def test_headline_without_standard_errors_or_without_a_student_claims_nothing(project: Any) -> None:
    project.set("2", "generative_perplexity", 1.0, steps=4, count=1)
    assert "not clearly better" in headline(project.experiment())[0]
    project.forget("entropy", models=["2"])
    assert "means nothing alone" in headline(project.experiment())[1]
    teacher = project.experiment(rounds=0, schedule={}, models=["ar", "0"])
    assert "No round was distilled" in headline(teacher)[0]
    assert reading(teacher) == []


def test_entropy_that_falls_with_perplexity_is_named(project: Any) -> None:
    assert "Entropy fell together with perplexity" in reading(project.experiment())[-1]
    assert "It is not below that of the teacher at 16" in reading(project.experiment())[-1]
    project.set("2", "entropy", 4.0, 0.01, steps=4)
    assert "paid for with that" in reading(project.experiment())[-1]
    project.set("2", "entropy", 4.5, 0.01, steps=4)
    assert "Entropy did not fall" in reading(project.experiment())[-1]


def test_the_gain_is_stated_where_it_lies(project: Any) -> None:
    # 32 / 80 = 0.4 at 4 steps, 30 / 40 = 0.75 at 16.
    assert re.search(r"0\.4000 ± 0\.0090 at 4 .* 0\.750 ± 0\.014 at 16", reading(project.experiment())[0])


def test_few_mauve_samples_are_warned_of(project: Any) -> None:
    assert warnings_of([project.experiment()]) == []
    project.set("1", "mauve", 0.9, 0.01, steps=4, count=999)
    assert "999 samples, fewer than 1000" in warnings_of([project.experiment()])[0]


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
    assert set(ours.elements) <= set(harmless.elements)
    for tag in ("script", "img", "svg", "details"):
        count = [name for name, _ in ours.elements].count(tag)
        assert count == [name for name, _ in harmless.elements].count(tag)
    assert not [name for _, names in ours.elements for name in names if name.startswith("on")]
    # The scorer, the device, three metrics, a sampler and its setting, and the parameters.
    assert ours.text.count(hostile) >= 8


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
    page = page_of(report)
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    perplexities = [cell for cell in re.findall(r"<td>(.*?)</td>", table) if "below" in cell]
    assert len(perplexities) == 3 * 2 + 2
    assert all("entropy 4." in cell for cell in perplexities)
    assert table.count("≤ 20.10 ± 0.20") == 3


@pytest.mark.usefixtures("drawn")
def test_figures_show_something_and_come_out_the_same(report: Path, project: Any) -> None:
    kept = project.root / "again" / "gpu" / "index.html"
    kept.parent.mkdir(parents=True)
    kept.write_text("of another run")
    again = project.report("again")
    assert kept.read_text() == "of another run"
    figures = sorted(report.glob("figures/*.png"))
    assert {figure.stem for figure in figures} == FIGURES == {path.stem for path in report.glob("plots/*.csv")}
    for figure in figures:
        vector = figure.with_suffix(".svg")
        assert vector.read_bytes() == (again / "figures" / vector.name).read_bytes()
        assert len(list(ElementTree.parse(vector).iter("{http://www.w3.org/2000/svg}path"))) > 20
        assert figure.read_bytes() == (again / "figures" / figure.name).read_bytes()
        pixels = imread(figure)[..., :3]
        assert (pixels.min(axis=2) < 0.9).mean() > 0.01, "an empty page"
        # Coloured pixels are the data: axes and text are grey.
        assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 0.2).sum() > 200
    for name in ("index.html", "steps.csv", "summary.json"):
        assert (report / name).read_bytes() == (again / name).read_bytes()


def test_figures_without_data_become_a_sentence(project: Any) -> None:
    project.forget("cloze_accuracy", "cloze_perplexity")
    project.latency["denoiser"] = [entry | {"setting": "num_steps=5"} for entry in project.latency["denoiser"][:1]]
    for path in (project.root / "curves").iterdir():
        path.write_text("step,loss,learning_rate,grad_norm,valid_loss\n")
    folder = project.report()
    assert {path.stem for path in (folder / "figures").iterdir()} == FIGURES - {"cloze", "latency", "training"}
    page = page_of(folder)
    for words in ("no cloze passages", "both sampled and timed", "No model was trained"):
        assert words in page
    assert page.count("<img") == 4


def test_times_are_per_sample(project: Any) -> None:
    # 0.04 s per step for a batch of 8.
    latency = project.experiment().latency
    assert [timing.seconds for timing in latency.denoiser] == pytest.approx([0.02, 0.08])
    assert latency.autoregressive.seconds == pytest.approx(0.07)
    assert cells_of(page_of(project.report()), "4 steps") == ["4", "0.02", "5", "3.50"]


def test_missing_or_foreign_files_are_named(project: Any) -> None:
    project.write_metrics()
    path = project.root / "metrics" / "1.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"1\.json is not what evaluate writes .*dvc repro"):
        read_records(path.parent, MODELS)
    (path.parent / "latency.json").write_text('{"batch_size": 0}')
    with pytest.raises(UserError, match=r"latency\.json is not what latency writes"):
        read_latency(path.parent / "latency.json")
    (project.root / "curves" / "2.csv").write_text("step,loss\n1,abc\n")
    with pytest.raises(UserError, match=r"2\.csv is not a training curve"):
        read_curve(project.root / "curves" / "2.csv")
    with pytest.raises(UserError, match=r"none\.csv is not there"):
        read_curve(project.root / "curves" / "none.csv")


def test_terminal_table_shows_the_values(project: Any) -> None:
    shown = terminal(project)
    for text in ("round 2", "32.00±0.60", "H 4.420", "25.0±3.0 %", "≤20.10±0.20", "perplexity 18.00 ± 0.20"):
        assert text in shown


EVERYTHING = ("nfe", "generative_perplexity", "entropy", "mauve", "validation_perplexity", "cloze_accuracy")


@pytest.mark.parametrize(
    ("metrics", "of"),
    [
        ((*EVERYTHING, "cloze_perplexity", "data_generative_perplexity", "data_entropy"), MODELS),
        (EVERYTHING, ["ar"]),
        (EVERYTHING[:4], ["0"]),
        (["generative_perplexity"], ["2"]),
    ],
)
def test_what_was_not_measured_stops_nothing(project: Any, metrics: list[str], of: list[str]) -> None:
    project.forget(*metrics, models=of)
    page = page_of(project.report())
    assert not re.search(r"\bNone\b(?!:)|\bnan\b|\binf\b", page)
    if of == MODELS:
        assert "No samples were scored" in page
    assert "teacher" in terminal(project)


def test_one_round_and_no_round_have_a_page(project: Any) -> None:
    for models in (["ar", "0", "1"], ["ar", "0"]):
        rounds = int("1" in models)
        schedule = {name: entry.model_dump() for name, entry in schedule_of(rounds).items()}
        project.experiment(rounds=len(schedule), schedule=schedule, models=models)
        page = page_of(project.report())
        assert "restored from cache" in page
        assert ("No round was distilled" in page) == ("1" not in models)


def test_times_of_stages_are_those_of_the_files_at_hand(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfstep.run.stage_times import record_stage

    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setattr("halfstep.run.stage_times.STARTED", -1e6)
    monkeypatch.setattr("halfstep.run.stage_times.time.monotonic", lambda: 234.5 - 1e6)
    record_stage("distill@1", project.root / "curves" / "1.csv")
    page = page_of(project.report())
    assert cells_of(page, "distill@1")[0] == "234.5"
    for stage in ("distill@2", "prepare", "pretrain", "baseline", "sample@ar", "evaluate@2", "latency"):
        assert cells_of(page, stage)[0] == "–"


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


def test_ratio_of_equals_has_root_two_times_the_relative_error() -> None:
    one = Estimate(10.0, 0.1, 5, "1")
    assert ratio(one, one).value == 1.0
    assert ratio(one, one).standard_error == pytest.approx(0.01 * 2**0.5)
