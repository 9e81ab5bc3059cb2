"""What papers publish about students in few steps, at about equal entropy: theirs, not measured here."""

from halfstep.report.records import MISSING, format_number
from halfstep.report.table import Cell, Table

STEPS = (4, 8, 16, 32)

PUBLISHED = {
    "arXiv:2609.40235, Table 2": {
        "MDLM": {4: (678, 5.44), 8: (267, 5.38), 16: (72.8, 5.20)},
        "SDTT": {4: (372, 5.44), 8: (103, 5.38), 16: (39.4, 5.20)},
        "D-MMD": {4: (431, 5.44), 8: (135, 5.38), 16: (41.7, 5.20)},
        "IDLM": {4: (145, 5.44), 8: (48.4, 5.38), 16: (24.3, 5.20)},
    },
    "arXiv:2610.06648": {
        "MDLM": {8: (282.5, 5.45)},
        "DiDi-Instruct": {8: (149.0, 5.44)},
        "IDLM": {8: (56.2, 5.44), 16: (33.8, 5.43), 32: (29.3, 5.43)},
        "MDLM-MMD": {8: (43.5, 5.43), 16: (26.8, 5.42), 32: (21.5, 5.39)},
    },
}
"""By source and method: perplexity under gpt2-large and entropy in nats, by steps of ancestral sampling. Of the first
source one seed at the entropies of its table's header, of the second five seeds; OpenWebText, 1024 tokens, 170M."""


def published_table() -> Table:
    """Perplexities with their entropies, and what part of the undistilled model's they are where that is known."""
    rows: list[tuple[Cell, ...]] = []
    for source, methods in PUBLISHED.items():
        undistilled = methods["MDLM"]
        for method, by_steps in methods.items():
            cells: list[Cell] = []
            for steps in STEPS:
                found, teacher = by_steps.get(steps), undistilled.get(steps)
                if found is None:
                    cells.append((MISSING,))
                    continue
                cell = [f"{format_number(found[0])} ({found[1]:.2f})"]
                if teacher and method != "MDLM":
                    cell.append(f"{found[0] / teacher[0]:.2f} of MDLM's")
                cells.append(tuple(cell))
            rows.append(((method, source), *cells))
    return Table(("published: steps", *map(str, STEPS)), rows)
