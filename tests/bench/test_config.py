import dataclasses

import pytest
import yaml

from peft_reprogram.bench import BenchConfig, TaskConfig, groups, load_config, parse_shard
from peft_reprogram.bench.cells import recipe


GOOD = {
    "models": {"small": "models/small"},
    "tasks": {"digits": {"dataset": "demo", "shots": {4: {"epochs": 2}, "all": {"max_steps": 5}}}},
    "strategies": ["zero_shot", "lora"],
    "seeds": [3, 5],
}


def written(tmp_path, **changes):
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_a_file_becomes_cells_in_its_order(tmp_path):
    config = load_config(written(tmp_path))
    found = [(g.task, g.shots, g.strategy, g.seeds) for g in groups(config)]
    assert found == [
        ("digits", 4, "zero_shot", (3, 5)),
        ("digits", 4, "lora", (3, 5)),
        ("digits", None, "zero_shot", (3, 5)),
        ("digits", None, "lora", (3, 5)),
    ]
    assert len({cell.folder() for group in groups(config) for cell in group.cells()}) == 8


def test_shards_share_out_all_cells(tmp_path):
    config = load_config(written(tmp_path))
    parts = [groups(config, (index, 3)) for index in range(3)]
    assert sorted(str(group) for part in parts for group in part) == sorted(map(str, groups(config)))
    assert parse_shard("1/3") == (1, 3)
    for text in ("3/3", "1", "a/b", "-1/2", "1/0"):
        with pytest.raises(ValueError, match="`i/n`"):
            parse_shard(text)


def test_one_strategy_under_two_labels_and_fixed_options(tmp_path):
    strategies = {"lora": {}, "lora, large": {"strategy": "lora", "r": 32}}
    config = load_config(written(tmp_path, strategies=strategies))
    assert config.strategy("lora, large").r == 32
    assert config.strategy("lora").r != 32
    rates = [options["lr"] for options in config.grid("lora")]
    assert len(set(rates)) == 3
    fixed = load_config(written(tmp_path, strategies={"lora": {"lr": 1e-3}}))
    assert fixed.grid("lora") == [{}]


def test_the_recipe_changes_with_whatever_changes_numbers(tmp_path):
    config = load_config(written(tmp_path))
    group = groups(config)[1]
    base = recipe(config, group)
    assert recipe(load_config(written(tmp_path)), group) == base
    # Further tasks, shots, seeds or strategies leave what is there as it is.
    grown = load_config(written(tmp_path, strategies=["zero_shot", "lora", "full"], seeds=[3, 5, 7]))
    assert recipe(grown, group) == base
    task = config.tasks["digits"]
    changed = [
        dataclasses.replace(config, training={"batch_size": 7}),
        dataclasses.replace(config, scores=["msp"]),
        dataclasses.replace(config, trials=1),
        dataclasses.replace(config, strategies={"lora": {"r": 3}}),
        dataclasses.replace(config, tasks={"digits": dataclasses.replace(task, shots={4: {"epochs": 3}})}),
        dataclasses.replace(config, tasks={"digits": dataclasses.replace(task, test_images=9)}),
    ]
    assert base not in [recipe(other, group) for other in changed]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, r"unknown keys \['model'\]; the known ones are models, tasks"),
        ({"strategies": ["lorra"]}, "there is no strategy 'lorra'; there are .*lora"),
        ({"strategies": {"lora": {"rank": 2}}}, r"no option \['rank'\]; its options are"),
        ({"scores": ["enrgy"]}, "enrgy"),
        ({"scores": ["mcm"]}, "the score 'mcm' looks at more than"),
        ({"scores": ["knn"]}, "the score 'knn' looks at more than"),
        ({"seeds": []}, "`seeds` is empty"),
        ({"seeds": [1, 1]}, "name one twice"),
        ({"trials": 0}, "`trials` must be at least 1"),
        ({"training": {"epoch": 2}}, r"training: unknown training options \['epoch'\]"),
        ({"training": {"seed": 2}}, r"unknown training options \['seed'\]"),
        ({"tasks": {"a": {"dataset": "d"}}}, "the task 'a'.*shots"),
        ({"tasks": {"a": {"dataset": "d", "shots": {0: {}}}}}, "the task 'a': `shots` must be numbers of at least 1"),
        (
            {"tasks": {"a": {"dataset": "d", "shots": {2: {"lr": -1}}}}},
            "the task 'a'.*`lr` must be a number of at least 0",
        ),
        (
            {"tasks": {"a": {"dataset": "d", "shots": {2: {}}, "severities": [6]}}},
            r"`severities` must be among .*\[6\]",
        ),
        ({"strategies": {"lora": {"lr": "fast"}}}, "`lr` must be a number of at least 0, got 'fast'"),
        ({"models": {"small": ["models/small"]}}, r"the model 'small' must be a Hub id.*\['models/small'\]"),
        ({"tasks": {"a": {"dataset": "d", "shots": {2: {}}, "oods": {}}}}, r"the task 'a': unknown keys \['oods'\]"),
        ({"tasks": {"a": {"dataset": "d", "shots": {2: {}}, "corruptions": ["fogg"]}}}, r"no corruptions \['fogg'\]"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        load_config(written(tmp_path, **changes))
    assert "bench.yaml" in str(error.value)


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "+1E-4"])
def test_numbers_as_people_write_them(tmp_path, number):
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "strategies": {"full": {"lr": "RATE"}}}).replace("RATE", number))
    assert load_config(path).strategy("full").lr == 1e-4


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no configuration file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="must hold the keys of a bench"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is no YAML"):
        load_config(tmp_path / "broken.yaml")


def test_kinds_of_corruptions_are_spelt_out():
    task = TaskConfig(dataset="d", shots={1: {}}, corruptions=["common", "saturate"])
    assert len(task.corruption_names()) == 16
    assert isinstance(BenchConfig(models={"m": "m"}, tasks={"t": task}, strategies={"zero_shot": {}}), BenchConfig)
