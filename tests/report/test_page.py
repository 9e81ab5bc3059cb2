"""The report against hand-written results: what the page says is what the numbers are."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread
from rich.console import Console
from tests.report.conftest import AT_ENTROPY

from halfstep.metrics.estimate import Estimate
from halfstep.metrics.record import read_records
from halfstep.report.experiment import read_curve, read_latency
from halfstep.report.frontier import lowest_front, round_rows, sentences
from halfstep.report.records import format_estimate
from halfstep.report.table import summarize, terminal_tables
from halfstep.report.words import warnings_of
from halfstep.run.errors import UserError
from halfstep.settings.graph import schedule_of

pytestmark = pytest.mark.stage  # takes seconds
MODELS = ["ar", "0", "1", "2"]
FIGURES = {
    "frontier",
    "frontier_seconds",
    "latency",
    "steps",
    "rounds",
    "cloze",
    "loss_by_time",
    "unmasking",
    "training",
}


def page_of(folder: Path) -> str:
    """The page without its figures, scripts and style."""
    page = (folder / "index.html").read_text()
    return re.sub(r"<script.*?</script>|<style.*?</style>|data:image[^\"]*", "", page, flags=re.DOTALL)


def cells_of(page: str, row: str, section: str = "main") -> list[str]:
    """Cells of the first row of a table that begins so, from a section on."""
    page = page[page.index(f'id="{section}"') :]
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
    cell = cells_of(page, "round 2", "results")[2]
    assert re.search(r"33\.0 ± 1\.0.*entropy 4\.400 ± 0\.010.*MAUVE –.*12\.5 evaluations", cell)
    assert cells_of(page, "round 1", "results")[2] == "–"
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
    cells = cells_of(page_of(folder), "round 1", "results")
    assert [cell.count("MAUVE –") for cell in cells] == [1, 1, 0, 0, 0]
    assert cells[-2] == "–"


def answers(project: Any) -> list[str]:
    return sentences(project.experiment().frontier)


def test_the_answer_is_what_16_evaluations_buy_at_the_entropy_of_the_text(project: Any) -> None:
    first, *_ = answers(project)
    assert re.match(r"With 16 network evaluations a sample, the teacher reaches perplexity 22\.00 \[21", first)
    assert "] under models/ar at the entropy of the validation text or above, drawn by the sampler ordered" in first
    assert first.endswith("Ancestral sampling needs more than 16 for that.")
    # Between 90 at 4 and 22.5 at 64 evaluations, log perplexity is linear in the logarithm of the evaluations.
    project.set_curves("0", {("ancestral", 4): 90.0, ("ancestral", 64): 22.5, ("ordered", 16): 45.0})
    assert answers(project)[0].endswith("Ancestral sampling needs 16 for that.")
    project.set_curves("0", {("ancestral", 4): 90.0, ("ancestral", 16): 20.0, ("ordered", 16): 45.0})
    assert answers(project)[0].endswith("No other sampler is better.")


def test_a_student_is_better_only_where_the_interval_says_so(project: Any) -> None:
    def verdict(at_4: float, at_16: float, noise: float = 0.0) -> str:
        project.set_curves("2", {("ordered", 4): at_4, ("ordered", 16): at_16}, noise=noise)
        return answers(project)[1]

    project.set_curves("0", AT_ENTROPY["0"], noise=0.0)
    # With the same randomness in all samples the ratio has no error: 48 / 60 and 24.2 / 22.
    mixed = verdict(48.0, 24.2)
    assert "round 2 is better than its teacher in 4 and 8 and worse than its teacher in 16 evaluations." in mixed
    assert "temperature" not in mixed
    assert "Within" not in mixed
    within = r"in 4, 8 and 16 evaluations\. Within 16 it reaches 11\.00 \[.*\], drawn by ordered \(16 steps\)\.$"
    assert re.search(within, verdict(48.0, 11.0))
    # Noise of 0.5 in 40 samples is an error of 0.08 or so of the logarithm.
    unclear = verdict(58.0, 22.0, noise=0.5)
    assert "round 2 is no better than its teacher in 4, 8 and 16 evaluations. Its rounds do no more than" in unclear
    assert verdict(61.0, 23.0).endswith("Its rounds do no more than a temperature does.")


def test_without_students_rivals_or_curves_nothing_is_claimed_of_them(project: Any) -> None:
    of_rivals = answers(project)[2]
    assert re.search(r"1 block 21.00 \[.*\] at the cost of 16 .*; 4 blocks 20.00 \[.*\] at the cost of 63", of_rivals)
    for model in ("ar", "ar-1", "1", "2"):
        shutil.rmtree(project.root / "frontier" / model)
    assert len(answers(project)) == 1
    page = page_of(project.report())
    assert "student / teacher" not in page
    shutil.rmtree(project.root / "frontier")
    page = page_of(project.report("none"))
    assert "Nothing was drawn at several temperatures, so models cannot be compared at equal entropy." in page
    assert not (project.root / "none" / "frontier.csv").exists()


def test_what_never_has_the_entropy_has_no_number(project: Any) -> None:
    project.set_curves("0", AT_ENTROPY["0"], entropy=3.0)
    assert answers(project)[0].startswith("Nothing that was drawn from the teacher in 16 evaluations or fewer has")
    assert "no budget in which both" in answers(project)[1]
    page = page_of(project.report())
    assert "At no temperature measured has the entropy of the validation text&#39;s" in page
    assert "0 by ordered (4 steps) (2.800 to 3.600)" in page
    assert cells_of(page, "16")[:2] == ["–", "–"]


def test_tables_of_budgets_and_rounds_hold_the_perplexities_at_that_entropy(project: Any) -> None:
    page = page_of(project.report())
    found = [[re.split(r" \[|<", cell)[0] for cell in cells_of(page, str(n))] for n in (4, 8, 16, 32)]
    at_4 = ["60.0", "8", "48.0", "0.8000"]
    # Of the student nothing is known beyond 16.
    at_16, at_32 = ["22.00", "more than 16", "22.50", "1.0227"], ["22.00", "more than 16", "–", "–"]
    assert found == [at_4, at_4, at_16, at_32]
    assert [budget.num_evaluations for budget in project.experiment().frontier.budgets] == [4, 8, 16, 32]
    assert re.search(r"^60\.0 \[.*\]<span class=\"below\">ordered \(4 steps\)</span>$", cells_of(page, "4")[0])
    header, rows = round_rows(project.experiment().frontier)
    assert header == ("perplexity at equal entropy", "ancestral (4 steps)", "ordered (4 steps)", "ordered (16 steps)")
    assert [[re.split(r" \[", cell)[0] for cell in row] for row in rows] == [
        ["teacher", "90.0", "60.0", "22.00"], ["round 1", "60.0", "55.0", "–"], ["round 2", "50.0", "48.0", "22.50"],
    ]  # fmt: skip


def test_what_tells_ways_apart_is_in_their_names(project: Any) -> None:
    noisy = {("ordered", 4): 60.0}
    project.set_curves("0", AT_ENTROPY["0"])
    assert [*project.experiment().frontier.families("0")] == ["ancestral", "ordered"]
    path = project.root / "frontier" / "1"
    project.set_curves("1", noisy)
    for file in path.iterdir():
        file.write_text(file.read_text().replace("score=entropy", "score=margin"))
    frontier = project.experiment().frontier
    assert [*frontier.families("0")] == ["ancestral", "ordered (score entropy)"]
    assert [*map(frontier.describe, frontier.of("1"))] == ["ordered (4 steps, score margin)"]
    for file in path.iterdir():
        file.write_text(file.read_text().replace("score=margin", "score=position,drawing=parallel"))
    frontier = project.experiment().frontier
    assert [*frontier.families("0"), *frontier.families("1")] == ["ancestral", "ordered", "ordered, parallel"]


def test_the_lowest_front_is_what_no_cheaper_way_beats(project: Any) -> None:
    front = lowest_front(project.experiment().frontier.of("0"))
    assert [(way.sampler, way.evaluations) for way in front] == [("ordered", 4), ("ordered", 16)]


def test_files_of_the_frontier_hold_rows_and_what_they_come_to(report: Path) -> None:
    with (report / "frontier.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows[::3]] == [model for model, found in AT_ENTROPY.items() for _ in found]
    assert [(row["temperature"], row["entropy"], row["num_samples"]) for row in rows[:2]] == [
        ("0.8", "4.21", "40"), ("1.0", "4.61", "40"),
    ]  # fmt: skip
    assert rows[-1]["equivalent_evaluations"] == "15.75"
    values = json.loads((report / "frontier.json").read_text())
    assert values["entropy"] == 4.41
    (way,) = (each for each in values["ways"] if each["model"] == "ar-1")
    assert (way["evaluations"], way["equivalent_evaluations"], way["reached"]) == (63, 15.75, True)
    assert way["perplexity"]["value"] == pytest.approx(21)
    assert way["perplexity"]["interval"][0] < 21 < way["perplexity"]["interval"][1]
    assert way["entropies"] == pytest.approx([4.21, 5.01])


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
    page = page[page.index('id="results"') :]
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
    assert page.count("<img") == 6


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
        assert ("student / teacher" in page) == ("1" in models)


def test_times_of_stages_are_those_of_the_files_at_hand(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfstep.run.stage_times import record_stage

    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setattr("halfstep.run.stage_times.STARTED", -1e6)
    monkeypatch.setattr("halfstep.run.stage_times.time.monotonic", lambda: 234.5 - 1e6)
    record_stage("distill@1", project.root / "curves" / "1.csv")
    (project.root / "curves" / "ar-1.csv").write_text("step,loss\n1,5.0\n")
    record_stage("rival@1", project.root / "curves" / "ar-1.csv")
    page = page_of(project.report())
    assert cells_of(page, "distill@1")[0] == "234.5"
    assert cells_of(page, "rival@1")[0] == "234.5"
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
