"""The page: the same content as one self-contained HTML file and as Markdown."""

import base64
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from halfstep.metrics.estimate import Estimate
from halfstep.report.charts import Chart, charts_of, write_points
from halfstep.report.figures import draw_figures
from halfstep.report.headline import GAIN, headline, reading, warnings_of
from halfstep.report.results import Curve, Latencies, Metrics
from halfstep.report.samples import KINDS, Sample, browser_data
from halfstep.report.table import (
    MISSING,
    autoregressive_of,
    denoisers_of,
    describe_model,
    format_estimate,
    format_number,
    make_table,
    step_counts,
    summarize,
    write_steps,
)
from halfstep.run.files import atomic_path, write_json
from halfstep.run.stage_times import StageTime

QUESTION = (
    "A masked diffusion language model writes text in a chosen number of denoising steps, and writes worse with fewer.",
    "Each round of self-distillation trains a student to do in one step what its teacher does in several:"
    " how many steps does that save, and what does it cost in quality and variety?",
)

MAX_MARKDOWN_CHARACTERS = 700
"""A sample in the Markdown page ends here; the HTML page shows it whole, in a box that scrolls."""


@dataclass(frozen=True)
class StageRow:
    """One stage in the table of times.

    Attributes:
        stage: as DVC names it.
        seconds: that it took, in words; a dash where nothing is known.
        where: hardware and versions, or why nothing is known.
    """

    stage: str
    seconds: str
    where: str


UNKNOWN_TIME = "restored from cache: it did not run on this machine, or its record is gone"


def stage_rows(stages: Mapping[str, StageTime | None]) -> list[StageRow]:
    """The table of times; a stage without a record says so."""
    return [
        StageRow(stage, f"{found.seconds:,.1f}", f"{found.hardware}; {found.versions}")
        if found
        else StageRow(stage, MISSING, UNKNOWN_TIME)
        for stage, found in stages.items()
    ]


def write_report(
    folder: Path,
    *,
    metrics: Metrics,
    latencies: Latencies | None,
    curves: Mapping[str, Curve],
    samples: Sequence[Sample],
    together: Mapping[int, Estimate],
    stages: Mapping[str, StageTime | None],
    params_text: str,
    distance: str,
    preset: str,
    paired_ratio: Estimate | None,
) -> None:
    """Write the report: index.html, README.md, figures/, plots/, steps.csv and summary.json.

    Args:
        folder: gets them; other files in it are left alone.
        metrics: of every model.
        latencies: of every number of steps; None if they were not measured.
        curves: training curves of every model.
        samples: those to show.
        together: of `tokens_together`, of a denoiser.
        stages: how long each stage took; None where that is not known.
        params_text: the composed parameters as YAML.
        distance: name of the distillation loss.
        preset: which parameters these are.
        paired_ratio: see `headline`.
    """
    charts = charts_of(metrics, latencies, curves, together, distance=distance, preset=preset)
    write_points_of(charts, folder / "plots")
    with atomic_path(folder / "figures") as figures_folder:
        figures_folder.mkdir()
        drawn = draw_figures(charts, figures_folder)
    write_steps(metrics, folder / "steps.csv")
    write_json(folder / "summary.json", summarize(metrics))
    titles = {name: describe_model(model) for name, model in metrics.items()}
    units = {name: "tokens" if model.round_index is None else "denoising steps" for name, model in metrics.items()}
    content = {
        "question": QUESTION,
        "headline": headline(metrics, paired_ratio),
        "warnings": warnings_of(metrics),
        "table": make_table(metrics),
        "table_notes": table_notes(metrics),
        "further_header": ("", *(titles[name] for name in metrics)),
        "further_rows": further_rows(metrics),
        "charts": charts,
        "images": encode_images(drawn),
        "latency_header": ("", "network evaluations", "seconds per sample", "tokens per second", "times as fast"),
        "latency_rows": latency_rows(latencies),
        "latency_conditions": latencies.conditions if latencies else "",
        "browser": browser_data(samples, titles, units),
        "browser_start": _browser_start(metrics),
        "groups": _sample_groups(samples, step_counts(metrics)),
        "titles": titles,
        "units": units,
        "gain": GAIN,
        "reading": reading(metrics),
        "counts": _count_lines(metrics),
        "stages": stage_rows(stages),
        "versions": versions(),
        "params_text": params_text,
    }
    for template, name in (("report.html.j2", "index.html"), ("report.md.j2", "README.md")):
        write_page(folder / name, template, content)


def write_points_of(charts: Sequence[Chart], folder: Path) -> None:
    """Write the points of every chart, of those without any too, as CSV into a folder."""
    for chart in charts:
        write_points(chart, folder / f"{chart.name}.csv")


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Fill a template of the package and write it, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(_environment().get_template(template).render(content), encoding="utf-8")


def encode_images(drawn: Mapping[str, Mapping[str, bytes]]) -> dict[str, dict[str, str]]:
    """SVG files as data URIs."""
    return {
        name: {
            theme: "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii") for theme, svg in both.items()
        }
        for name, both in drawn.items()
    }


def versions() -> dict[str, str]:
    """Of what makes the report."""
    packages = ("halfstep", "torch", "transformers", "mauve-text", "matplotlib", "dvc")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _browser_start(metrics: Metrics) -> dict[str, Any]:
    """What the sample browser shows first: the last student at its fewest steps, beside the teacher."""
    denoisers = denoisers_of(metrics)
    names = [describe_model(model) for model in (*denoisers[:1], *denoisers[-1:])]
    return {"models": names, "steps": min(step_counts(metrics), default=0)}


@dataclass(frozen=True)
class SampleGroup:
    """The same sample, by kind and index, from every model."""

    kind: str
    sample_index: int
    samples: Sequence[Sample]


def _sample_groups(samples: Sequence[Sample], counts: Sequence[int]) -> list[SampleGroup]:
    """What the Markdown page shows: every model at the fewest steps, or at its own if it has none of them."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        if sample.num_steps not in counts[1:]:
            groups.setdefault((sample.kind, sample.sample_index), []).append(sample)
    keys = sorted(groups, key=lambda key: (KINDS.index(key[0]), key[1]))
    return [SampleGroup(*key, groups[key]) for key in keys]


def _environment() -> Environment:
    # Samples hold whatever a model wrote: everything is escaped in HTML, and fenced in Markdown, which has no
    # escape that holds in all its dialects.
    environment = Environment(
        loader=PackageLoader("halfstep.report"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fenced"] = fenced
    environment.filters["markdown_sample"] = _markdown_sample
    environment.filters["inert"] = inert
    return environment


def inert(text: str) -> str:
    """Text of others as Markdown that holds no HTML and stays in its cell of a table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def fenced(text: str, language: str = "text") -> str:
    """Text as a Markdown code block, with a fence longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _markdown_sample(sample: Sample) -> str:
    text = sample.text
    if len(text) > MAX_MARKDOWN_CHARACTERS:
        text = text[:MAX_MARKDOWN_CHARACTERS] + " …"
    return fenced("\n".join(textwrap.fill(line, 100) for line in text.splitlines()))


def latency_rows(latencies: Latencies | None) -> list[tuple[str, ...]]:
    """The table of times, the autoregressive model last; empty if they were not measured."""
    if latencies is None:
        return []
    reference = latencies.autoregressive
    rows = [
        (
            f"{latency.num_steps} steps",
            format_number(latency.nfe),
            format_number(latency.seconds),
            format_number(latency.tokens_per_second),
            f"{reference.seconds / latency.seconds:.2f}",
        )
        for latency in latencies.denoiser
    ]
    own = (reference.nfe, reference.seconds, reference.tokens_per_second)
    return [*rows, ("autoregressive, KV cache", *(format_number(value) for value in own), "1")]


def further_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """What else was measured, one row per measurement and one column per model; empty if nothing else was."""
    titles = dict.fromkeys(title for model in metrics.values() for title in model.further)
    return [(title, *(format_estimate(model.further.get(title)) for model in metrics.values())) for title in titles]


def table_notes(metrics: Metrics) -> list[str]:
    """How to read the table of rounds."""
    extras = list(
        dict.fromkeys(title for model in metrics.values() for sampled in model.samples for title in sampled.extras)
    )
    and_extras = f", their {', '.join(extras)}" if extras else ""
    return [
        "Cells: generative perplexity ± standard error, under it the entropy of the same samples (nats), their MAUVE"
        f"{and_extras}.",
        "≤ marks an upper bound: a denoiser's validation perplexity comes from the evidence bound, the"
        " autoregressive model's is exact, so the two are not on one scale.",
        f"A dash ({MISSING}) marks what was not measured.",
    ]


def _count_lines(metrics: Metrics) -> list[str]:
    """What was measured on how much, in words."""
    any_model = next(iter(metrics.values()))
    retokenized = (
        ", which has another tokenizer: samples were decoded and tokenized again" if any_model.is_retokenized else ""
    )
    lines = [f"Scorer of generative perplexity: {any_model.scorer}{retokenized}."]
    for title, values in (
        (
            "Samples per model and number of steps",
            [
                sampled.generative_perplexity.count
                for model in metrics.values()
                for sampled in model.samples
                if sampled.generative_perplexity
            ],
        ),
        (
            "Samples behind each MAUVE",
            [sampled.mauve.count for model in metrics.values() for sampled in model.samples if sampled.mauve],
        ),
        (
            "Cloze passages",
            [model.cloze_accuracy.count for model in metrics.values() if model.cloze_accuracy],
        ),
        (
            "Count behind each validation perplexity",
            [model.validation_perplexity.count for model in metrics.values() if model.validation_perplexity],
        ),
    ):
        if values:
            low, high = min(values), max(values)
            lines.append(f"{title}: {low:,}." if low == high else f"{title}: {low:,} to {high:,}.")
    parameters = [model.num_parameters for model in denoisers_of(metrics)[:1]]
    autoregressive = autoregressive_of(metrics)
    for title, count in (
        *(("denoiser", count) for count in parameters),
        *((("autoregressive model", autoregressive.num_parameters),) if autoregressive else ()),
    ):
        lines.append(f"Parameters of the {title}: {count:,}.")
    return lines
