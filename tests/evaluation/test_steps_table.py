import csv

from halfstep.evaluation.steps_table import describe_entry, write_steps


def estimate(value, standard_error=None):
    return {"value": value, "standard_error": standard_error, "count": 4, "unit": "1"}


ENTRIES = [
    {
        "num_steps": steps,
        "nfe": estimate(steps - 0.5),
        "generative_perplexity": estimate(30.0 + steps, 1.25),
        "entropy": estimate(5.0, 0.125),
        "mauve": estimate(0.5, 0.25) if steps > 4 else None,
    }
    for steps in (4, 16)
]


def test_a_row_for_every_number_of_steps_and_nothing_where_nothing_was_measured(tmp_path):
    write_steps(tmp_path / "steps.csv", ENTRIES)
    with (tmp_path / "steps.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first == {
        "num_steps": "4",
        "nfe": "3.5",
        "generative_perplexity": "34.0",
        "generative_perplexity_standard_error": "1.25",
        "entropy": "5.0",
        "entropy_standard_error": "0.125",
        "mauve": "",
        "mauve_standard_error": "",
    }
    assert (second["mauve"], second["mauve_standard_error"]) == ("0.5", "0.25")


def test_a_line_names_the_model_and_gives_perplexity_with_entropy():
    line = "model 2, 4 steps: nfe 3.5, generative_perplexity 34 ± 1.2, entropy 5 ± 0.12, mauve -"
    assert describe_entry("2", ENTRIES[0]) == line
