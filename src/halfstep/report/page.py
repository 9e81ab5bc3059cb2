"""The page: the same content as one self-contained HTML file and as Markdown."""

import base64
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from halfstep.files import atomic_path, write_json
from halfstep.report.figures import draw_figures
from halfstep.report.headline import GAIN, headline, reading, warnings_of
from halfstep.report.results import Curve, Latencies, Metrics, SampleGroup, SampleText
from halfstep.report.table import (
    MISSING,
    autoregressive_of,
    denoisers_of,
    describe_model,
    format_number,
    make_table,
    summarize,
    write_steps,
)

QUESTION = (
    "A masked diffusion language model writes text in a chosen number of denoising steps, and writes worse with fewer.",
    "Each round of self-distillation trains a student to do in one step what its teacher does in several:"
    " how many steps does that save, and what does it cost in quality and variety?",
)

MAX_MARKDOWN_CHARACTERS = 700
"""A sample in the Markdown page ends here; the HTML page shows it whole, in a box that scrolls."""


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Attributes:
        name: file name without ending.
        title: heading over it.
        caption: what is seen.
        absent: the sentence in its place when there is nothing to show.
    """

    name: str
    title: str
    caption: str
    absent: str


FIGURES = (
    Figure(
        "steps",
        "Quality against denoising steps",
        "Generative perplexity of the samples (above, lower is better) and the entropy of the same"
        " samples (below), with standard errors. A low perplexity at a low entropy is repetition, not"
        " quality: read both together, against the validation text's own values.",
        "",
    ),
    Figure(
        "latency",
        "Quality against time",
        "Generative perplexity against the time for one sample: median, with the fastest and the slowest"
        " repeat. All denoisers have the same network, so one timing per number of steps serves every"
        " round.",
        "No number of denoising steps was both sampled and timed, so quality is not drawn against time: let"
        " latency.num_steps and sample.num_steps share values.",
    ),
    Figure(
        "mauve",
        "MAUVE by round",
        "Similarity of continuations to the validation text, higher is better, with the deviation over"
        " clustering seeds.",
        "MAUVE was not measured.",
    ),
    Figure(
        "cloze",
        "Cloze accuracy by round",
        "Share of passages whose last word the model completes, with standard errors.",
        "There are no cloze passages in this data, so cloze accuracy was not measured.",
    ),
    Figure(
        "training",
        "Training",
        "Loss over optimizer steps, and the loss on validation text. Of denoisers the latter is an upper"
        " bound of the negative log-likelihood, for students too; the training loss of a student is its"
        " distance from its teacher.",
        "No model was trained here: all were given.",
    ),
)


def write_report(
    folder: Path,
    *,
    metrics: Metrics,
    latencies: Latencies,
    curves: Mapping[str, Curve],
    samples: Sequence[SampleGroup],
    params_text: str,
    distance: str,
) -> None:
    """Write the report: index.html, README.md, figures/, steps.csv and summary.json.

    Args:
        folder: gets them; other files in it are left alone.
        metrics: of every model.
        latencies: of every number of steps.
        curves: training curves of every model.
        samples: texts to show.
        params_text: the composed parameters as YAML.
        distance: name of the distillation loss.
    """
    with atomic_path(folder / "figures") as figures_folder:
        figures_folder.mkdir()
        drawn = draw_figures(metrics, latencies, curves, distance=distance, folder=figures_folder)
    write_steps(metrics, folder / "steps.csv")
    write_json(folder / "summary.json", summarize(metrics))
    images = {name: (folder / "figures" / f"{name}.png").read_bytes() for name in drawn}
    content = {
        "question": QUESTION,
        "headline": headline(metrics),
        "warnings": warnings_of(metrics),
        "table": make_table(metrics),
        "table_notes": _table_notes(metrics),
        "figures": FIGURES,
        "images": {name: base64.b64encode(image).decode("ascii") for name, image in images.items()},
        "latency_header": (
            "",
            "network evaluations",
            "seconds per sample",
            "tokens per second",
            "times as fast",
        ),
        "latency_rows": _latency_rows(latencies),
        "latency_conditions": latencies.conditions,
        "samples": samples,
        "titles": {name: describe_model(model) for name, model in metrics.items()},
        "units": {name: "tokens" if model.round_index is None else "steps" for name, model in metrics.items()},
        "gain": GAIN,
        "reading": reading(metrics),
        "counts": _count_lines(metrics),
        "versions": {
            "halfstep": version("halfstep"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "params_text": params_text,
    }
    for template, name in (("report.html.j2", "index.html"), ("report.md.j2", "README.md")):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(_environment().get_template(template).render(content), encoding="utf-8")


def _environment() -> Environment:
    # Samples hold whatever a model wrote: everything is escaped in HTML, and fenced in Markdown, which has no
    # escape that holds in all its dialects.
    environment = Environment(
        loader=PackageLoader("halfstep"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fenced"] = fenced
    environment.filters["markdown_sample"] = _markdown_sample
    return environment


def fenced(text: str, language: str = "text") -> str:
    """Text as a Markdown code block, with a fence longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _markdown_sample(sample: SampleText) -> str:
    text = sample.text
    if len(text) > MAX_MARKDOWN_CHARACTERS:
        text = text[:MAX_MARKDOWN_CHARACTERS] + " …"
    return fenced("\n".join(textwrap.fill(line, 100) for line in text.splitlines()))


def _latency_rows(latencies: Latencies) -> list[tuple[str, ...]]:
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


def _table_notes(metrics: Metrics) -> list[str]:
    any_model = next(iter(metrics.values()))
    return [
        "Cells: generative perplexity ± standard error, under it the entropy of the same samples"
        f" ({any_model.data_entropy.unit}) and their MAUVE.",
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
            [sampled.generative_perplexity.count for model in metrics.values() for sampled in model.samples],
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
            [model.validation_perplexity.count for model in metrics.values()],
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
