from pathlib import Path

import pytest
import yaml

from halfstep.run.errors import UserError
from halfstep.run.files import atomic_path, project_root, resolve_user_path, write_json
from halfstep.settings import load_params
from halfstep.tools.planning.compose import composed_params

ROOT = Path(__file__).parents[1]


def _params(tmp_path: Path, change=lambda values: None) -> Path:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    change(values)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(path.parent.iterdir()) == []
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_replaces_the_one_before_it(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_path(tmp_path / "folder") as folder:
            folder.mkdir()
            (folder / name).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_json_with_a_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_user_paths_belong_to_the_real_project_in_a_queued_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert project_root() == tmp_path.resolve()
    assert resolve_user_path("texts/a.txt") == tmp_path.resolve() / "texts/a.txt"
    assert resolve_user_path("/texts/a.txt") == Path("/texts/a.txt")


BOOKS = {"name": "books", "source": "books/*.txt"}


def test_other_texts_need_a_name_and_a_source_only(tmp_path: Path) -> None:
    path = _params(tmp_path, lambda v: v["evaluate"].update(likelihood_on=[BOOKS], downstream_tasks=["piqa"]))
    settings = load_params(path).evaluate
    assert settings.downstream_tasks == ("piqa",)
    (text,) = settings.likelihood_on
    assert text.model_dump() == {**BOOKS, "hub_config": None, "split": "test", "text_column": "text"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(rounds=v["rounds"] + 1), r"contradicts itself.*dvc exp run -S rounds="),
        (lambda v: v.update(models=["ar"]), "contradicts itself"),
        (lambda v: v["frontiers"].pop("1"), r"contradicts itself.*frontiers \['0', 'ar', 'ar-1'\]"),
        (lambda v: v["frontiers"].update({"1": "frontier.samplers"}), "contradicts itself"),
        (lambda v: v.update(rivals=["ar-1"]), r"rivals.0 is 'ar-1'"),
        (lambda v: v.update(rivals=[0]), r"rivals.0 is 0: it should be more than 0"),
        (lambda v: v["data"].update(source="scrolls"), "scrolls"),
        (lambda v: v["data"]["tokenizer"].update(source="train-magic"), "train-magic"),
        (lambda v: v["sample"].update(prefix_length=64), "leaves nothing to continue"),
        (lambda v: v["sample"].update(samplers=[{"name": "surest"}]), "it should be 'ancestral', 'confidence', "),
        (lambda v: v["sample"].update(samplers=v["sample"]["samplers"] * 2), r"sample\.samplers .* is given twice"),
        (lambda v: v["latency"]["samplers"][0].update(num_steps=[0]), r"latency\.samplers\.0\.num_steps\.0 is 0"),
        (lambda v: v["sample"].update(continuation_length=65), r"more than data\.context_length 64"),
        (lambda v: v["model"].update(num_heads=7), "hidden_size"),
        (lambda v: v["distill"].update(base_num_steps=1), r"distill\.base_num_steps is 1"),
        (
            lambda v: v["evaluate"].update(downstream_tasks=["piqa", "piqa"]),
            r"\.downstream_tasks .*'piqa' is given twice",
        ),
        (lambda v: v["evaluate"].update(likelihood_on=[BOOKS, {**BOOKS}]), r"\.likelihood_on .*'books' is given twice"),
        (lambda v: v["sample"].update(num_steps=[4, 8, 4]), r"sample.num_steps .*: 4 is given twice; give each once"),
        # What later stages would refuse.
        (lambda v: v["launch"].update(processes_per_node=3), r"pretrain\.batch_size is 64, .* 3 processes .*=66"),
        (lambda v: v["launch"].update(num_nodes=2, processes_per_node=3), r"batch_size is 64, which 6 processes"),
        (lambda v: v["distill"]["lora"].update(rank=8), r"distill\.lora\.rank is 8, but the first teacher is none of"),
        (
            lambda v: (
                v["distill"]["lora"].update(rank=8),
                v["pretrain"].update(init_from="hub"),
                v["launch"].update(strategy="fsdp"),
            ),
            r"distill\.lora\.rank is 8, and launch\.strategy is fsdp",
        ),
        (
            lambda v: (
                v["distill"].update(objective="gumbel", gumbel={"noise_share": 0.9}),
                v["distill"].pop("joint"),
                v["baseline"].update(num_train_steps=0),
            ),
            r"objective is gumbel, which asks models/ar, but baseline\.num_train_steps is 0: .* -S baseline\.num_train",
        ),
        (lambda v: v["baseline"].update(batch_size=1) or v["launch"].update(num_nodes=2), r"baseline\.batch_size is 1"),
        (
            lambda v: v["evaluate"].update(metrics=["rouge"]),
            r"'rouge' is not a metric; there are .* mauve",
        ),
        (lambda v: v["evaluate"].update(mauve_num_buckets=193), r"mauve_num_buckets is 193, more than the 192 texts"),
        (
            lambda v: (v["evaluate"].update(mauve_num_buckets=9), v["frontier"].update(num_samples=4)),
            r"mauve_num_buckets is 9, more than the 8 texts to sort into them, frontier\.num_samples",
        ),
        (lambda v: v["latency"].update(length=1), r"latency\.length is 1: it should be 2 or more"),
        (lambda v: v["data"].update(context_length=2**20 + 1, tokens_per_shard=2**30), r"data\.context_length"),
        (lambda v: v["model"].update(num_blocks=10_001), r"model\.num_blocks is 10001"),
        (lambda v: v["sample"].update(num_steps=[4, 4.0]), r"sample.num_steps.1 is 4.0: .* whole number"),
        (lambda v: v["evaluate"].update(likelihood_on=[{**BOOKS, "name": "a/b"}]), r"likelihood_on\.0\.name is 'a/b'"),
        (lambda v: v["evaluate"].update(likelihood_on=["books"]), r"likelihood_on\.0 is 'books'"),
    ],
)
def test_bad_parameters_are_named_in_one_line_with_the_way_out(tmp_path: Path, change, message: str) -> None:
    path = _params(tmp_path, change)
    with pytest.raises(UserError, match=message) as raised:
        load_params(path)
    text = str(raised.value)
    assert "\n" not in text
    assert str(path) in text
    assert "dvc exp run" in text


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("sample", "num_steps", 4, "is 4: it should be a list; .* -S 'sample.num_steps=[4]'"),
        ("sample", "num_steps", "4,8", "it should be a list; .* -S 'sample.num_steps=[4,8]'"),
        ("sample", "num_steps", [], "a list with something in it; .* -S 'sample.num_steps=[VALUE]'"),
        ("sample", "num_steps", [4.5], "sample.num_steps.0 is 4.5: .* whole number.* -S 'sample.num_steps=[VALUE]'"),
        ("sample", "num_step", 4, "unknown parameter sample.num_step .*, is sample.num_steps meant?"),
        ("evaluate", "downstream_tasks", "piqa", "-S 'evaluate.downstream_tasks=[piqa]'"),
        ("evaluate", "mauve_num_buckets", "many", "mauve_num_buckets is 'many': it should be a whole number or 'auto'"),
        ("pretrain", "learning_rate", "1e-8", "is '1e-8': it should be a number, .* pretrain.learning_rate=1.0e-08"),
        ("pretrain", "learning_rate", 0.0, "it should be more than 0;"),
        ("pretrain", "learning_rate", None, "is None: it should be a number;"),
        ("pretrain", "batch_size", 64.0, "a whole number; .* -S pretrain.batch_size=64"),
        ("pretrain", "batch_size", "1_000", "a whole number; .* -S pretrain.batch_size=1000"),
        ("pretrain", "lr_schedule", "linaer", "'constant', 'linear' or 'cosine'; .* -S pretrain.lr_schedule=linear"),
        ("runtime", "compile", "yes", "true or false; .* -S runtime.compile=VALUE"),
        ("launch", "rendezvous", "here", "it should be HOST:PORT"),
        ("data", "cloze", 5, "it should be text; .* -S data.cloze=VALUE"),
        ("data", "source", "storys", "'hub', 'pydocs', 'stories', 'sudoku' or 'text'; .* -S data=stories"),
        ("data", "tokenizer", "gpt2", "it should be a group of keys; .* -S data.tokenizer.KEY=VALUE"),
        (
            "data",
            "cloze",
            "???",
            "data.cloze is '???': only you know its value, .* -S data=stories -S data.cloze=VALUE",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_how_to_write_it(
    tmp_path: Path, section: str, key: str, value: object, said: str
) -> None:
    with pytest.raises(UserError) as raised:
        load_params(_params(tmp_path, lambda values: values[section].update({key: value})))
    assert all(part in str(raised.value) for part in said.split(".*")), raised.value


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=text"], "data.path is '???': only you know its value"),
        (["data=hub"], "-S data=hub -S data.hub_id=VALUE"),
        (["+roundz=3"], "unknown parameter roundz (value 3), is rounds meant?"),
        (["sample.num_step=4"], "is sample.num_steps meant?"),
    ],
)
def test_overrides_that_lack_a_value_or_name_no_parameter(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        composed_params(overrides, ROOT)
    assert said in str(raised.value)


def test_frontiers_are_those_of_models_and_rivals() -> None:
    params = composed_params(["rounds=1", "rivals=[1,2]"], ROOT)
    assert params.rivals == (1, 2)
    assert params.frontiers == {
        "ar": "frontier.temperatures",
        "0": "frontier.samplers",
        "1": "frontier.student_samplers",
        "ar-1": "frontier.temperatures",
        "ar-2": "frontier.temperatures",
    }
