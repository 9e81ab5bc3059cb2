"""Sudoku of 4x4 through the stages: puzzles drawn from every kind of model, what is counted, and the page of it."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from stages import baseline, evaluate, frontier, prepare, pretrain, report, sample
from typer.testing import CliRunner

from halfstep.data.corpora import sudoku
from halfstep.data.packing.prepare import check_sources
from halfstep.data.tokenizer import load_tokenizer
from halfstep.data.tokens.packed import load_tokens
from halfstep.evaluation.frontier import puzzles_of, share_solved
from halfstep.model.gpt2 import fills_in, load_autoregressive
from halfstep.run.errors import UserError
from halfstep.settings import load_params
from halfstep.tools.cli import app
from halfstep.tools.planning.compose import composed_params

ROOT = Path(__file__).parents[2]
OVERRIDES = [
    "preset=smoke", "data=sudoku", "rounds=0", "runtime.device=cpu", "runtime.num_threads=1",
    "pretrain.num_train_steps=3", "baseline.num_train_steps=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without distillation, but for the report."""
    root = tmp_path_factory.mktemp("sudoku")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_ROOT", str(root))
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        values = composed_params(OVERRIDES, ROOT).model_dump(mode="json")
        Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        params = Path("params.yaml")
        tokens, tokenizer = Path("data/tokens"), Path("data/tokenizer")
        prepare.main(params, tokens, tokenizer, Path("data/cloze.jsonl"))
        pretrain.main(params, tokens, tokenizer, Path("models/0"), Path("curves/0.csv"))
        baseline.main("ar", params, tokens, tokenizer, None, None)
        for model in ("ar", "0"):
            sample.main(model, None, None, params, tokens)
            evaluate.main(model, None, None, params, tokens, Path("data/cloze.jsonl"), None, None)
            frontier.main(model, None, None, params, tokens)
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_a_packed_row_is_a_grid(project: Path) -> None:
    tokenizer = load_tokenizer(project / "data/tokenizer")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    num_rows = 0
    for split in ("train", "valid"):
        for row in load_tokens(project / "data/tokens", split)[:].tolist():
            assert (row[0], row[-2], row[-1]) == (bos, eos, eos)
            cells = [*map(int, tokenizer.decode(row[1:-2]).split())]
            assert len(cells) == 16
            assert sudoku.is_grid(cells)
            assert not sudoku.is_held_out(cells)
            num_rows += 1
    assert num_rows == 400


def test_every_way_has_a_row_of_the_share_that_it_solves(project: Path) -> None:
    rows = [row for model in ("ar", "0") for row in rows_of(project / "frontier" / model / "rows.csv")]
    found = {(row["model"], row["sampler"], row["temperature"], row["givens"]) for row in rows}
    ways = [("ar", "autoregressive"), *(("0", name) for name in ("ancestral", "ordered", "entropy_bound"))]
    assert found == {(*way, temperature, "6") for way in ways for temperature in ("0.0", "1.0")}
    for row in rows:
        assert 0 <= float(row["solved"]) <= 1
        assert 1 <= float(row["evaluations"]) <= 16
        assert (row["perplexity"], row["entropy"], row["mauve"], row["self_bleu"]) == ("", "", "", "")
    assert fills_in(load_autoregressive(project / "models/ar"))


def test_what_is_solved_is_counted(project: Path) -> None:
    params, tokenizer = load_params(project / "params.yaml"), load_tokenizer(project / "data/tokenizer")
    (puzzles,) = puzzles_of(params, tokenizer)
    grids = sudoku.prompts(params.data, params.seed, params.frontier.num_samples, 16)
    ids = [tokenizer.encode("".join(map(str, grid)), add_special_tokens=False) for grid in grids]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    solutions = [[bos, *row, eos, eos] for row in ids]
    is_masked = puzzles.x_init == tokenizer.mask_token_id
    assert (is_masked.sum(dim=1) == 10).all()
    assert torch.equal(puzzles.x_init[~is_masked], torch.tensor(solutions)[~is_masked])
    assert share_solved(params, puzzles, solutions, tokenizer) == 1
    # Four rows turned by one are other puzzles' solutions, or none.
    wrong = [*solutions[1:5], *solutions[:1], *solutions[5:]]
    assert share_solved(params, puzzles, wrong, tokenizer) == pytest.approx(11 / 16)


def test_puzzles_of_a_corpus_without_are_refused(project: Path) -> None:
    params = load_params(project / "params.yaml")
    stories = composed_params(["preset=smoke"], ROOT)
    changed = params.model_copy(update={"data": stories.data})
    with pytest.raises(UserError, match=r"data.source stories has no puzzles: dvc exp run -S frontier.num_givens="):
        puzzles_of(changed, load_tokenizer(project / "data/tokenizer"))
    with pytest.raises(UserError, match=r"data.source stories has no puzzles"):
        check_sources(changed)
    with pytest.raises(UserError, match=r"frontier.num_givens is 17, more than the 16 cells of a grid"):
        check_sources(composed_params([*OVERRIDES, "frontier.num_givens=[17]"], ROOT))
    with pytest.raises(UserError, match=r"baseline.num_givens is 18, more than the 17 tokens"):
        composed_params([*OVERRIDES, "baseline.num_givens=[18]"], ROOT)


def test_the_report_says_what_was_solved(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    report.main(Path("."), Path("reports"))
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert "Of puzzles with 6 given the teacher" in page
    assert "Puzzles solved for each network evaluation" in page
    assert "<h3>6 given</h3>" in page
    # What is said of texts has no section.
    assert "Cloze" not in page
    assert "at equal entropy" not in page
    summary = CliRunner().invoke(app, ["summary"]).stdout
    assert "Of puzzles with 6 given the teacher" in " ".join(summary.split())
    assert "teacher, drawn by" in summary
    # The browser shows a grid's rows beneath each other.
    assert re.search(r'" \d\\n"', page)
    found = json.loads(Path("reports/frontier.json").read_text())["ways"]
    assert len(found) == len(rows_of(Path("reports/frontier.csv"))) == 8
    for way in found:
        low, high = way["solved"]["interval"]
        assert 0 <= low <= way["solved"]["value"] <= high <= 1


def test_a_puzzle_is_filled_in_at_the_prompt(project: Path) -> None:
    def run(*arguments: str):
        return CliRunner().invoke(app, ["generate", "--model", str(project / "models/0"), *arguments])

    puzzle = "1 2 3 4  3 4 1 2  2 1 4 3  4 3 2 ."
    for arguments in ([], ["--show", "--pause-seconds", "0"], ["--sampler", "ancestral", "--num-steps", "2"]):
        result = run("--puzzle", puzzle, *arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.endswith("solved\n")
        assert "4 3 2" in result.stdout
    assert "has 1 twice in row 1" in str(run("--puzzle", "11" + "." * 14).exception)
    assert "was not trained on such grids" in str(run("--puzzle", "." * 36).exception)
    assert "leave out --prompt" in str(run("--puzzle", puzzle, "--prompt", "1").exception)
    # Before the model is opened.
    nowhere = CliRunner().invoke(app, ["generate", "--model", "nowhere", "--puzzle", "12"])
    assert "a puzzle has 16, 36 or 81" in str(nowhere.exception)
