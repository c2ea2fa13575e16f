"""Every option of every command, and every field of a pipeline, is run once.

An option, a field or an allowed value without a case fails the tests at the end. Cases that compile
networks or start processes run with the mark ``reliability``.
"""

from __future__ import annotations

import csv
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml

from featurestore.cli import cli
from featurestore.pipeline import PipelineSpec
from featurestore.pipeline.spec_file import part_of
from featurestore.settings import Settings
from tests.cli.conftest import Place
from tests.toys import featurestore

RELIABILITY = pytest.mark.reliability
FLIPS = [{"RandomFlip": {"mode": "horizontal"}}]
TRAIN = "train photos --model tiny --layer conv_b:avg --head"
EXTRACT = "extract photos --model tiny.keras --layer conv_b:avg"

COMMANDS = [
    "layers tiny.keras --weights tiny.keras --input-size 16 --scaling none --json",
    "layers tiny.keras --resize crop --interpolation lanczos3 --precision float16 --engine auto",
    "layers tiny.keras --special-tokens 1",
    f"{EXTRACT} --special-tokens 1 --dry-run",
    "scan photos --name all --val 0.2 --test 0.2 --seed 1 --problems --json",
    "scan photos --name all --group-by folder --store store",
    "scan table.csv --image-column file --label-column kind --split-column part --root photos",
    f"{EXTRACT} --dry-run --store store",
    "augment photos --views 1 --augmentation flips.yaml --name flipped --store store --json",
    f"{EXTRACT} --name new --val 0.2 --test 0.2 --seed 1",
    f"{EXTRACT} --name new --group-by folder --dry-run --json",
    "ls --weights tiny.keras --input-size 16 --scaling none --resize stretch",
    "ls --interpolation bilinear --precision float32 --store store --json",
    "show conv_b --store store --json",
    "show logistic",
    "show photos",
    "verify conv_b --store store --json",
    "repair conv_b --store store --json",
    "rm conv_a --json",
    "rm conv_b --keep-heads --yes --store store",
    "gc --boundaries --unused --yes --store store",
    "gc --json",
    "rank photos --model tiny --weights tiny.keras --input-size 16 --by logme --json",
    "rank photos --scaling none --resize stretch --interpolation bilinear --by ridge",
    "rank photos --precision float32 --store store --by ridge",
    f"{TRAIN} ridge --param alpha=2 --seed 3 --folds 3 --seeds 2 --weights tiny.keras "
    "--input-size 16 --scaling none",
    f"{TRAIN} ridge --resize stretch --interpolation bilinear --precision float32 --label mine "
    "--tag a --tag b --note text --store store --json",
    "refit photos --store store --json",
    "heads photos --sort folds.macro_f1 --weights tiny.keras --input-size 16 --scaling none",
    "heads --resize stretch --interpolation bilinear --precision float32 --store store --json",
    "run stored.yaml --json",
    "tag logistic a b --label mine --note text --store store --json",
    "evaluate flowers.keras photos --mistakes -o wrong.csv",
    "evaluate flowers.keras table.csv --image-column file --label-column kind --root photos "
    "--output wrong.csv --store store --json",
    "predict flowers.keras table.csv --image-column file --root photos -o predicted.csv",
    "predict flowers.keras photos/red --output predicted.csv --json",
]
# They compile networks, start processes, or measure this machine.
SLOW = [
    f"{EXTRACT} --weights tiny.keras --scaling unit --resize pad --interpolation nearest --json",
    f"{EXTRACT} --scaling tf --interpolation bicubic --precision bfloat16 --engine tensorflow",
    f"{EXTRACT} --scaling torch --interpolation lanczos5 --dtype float32 --batch-size 3 --replace",
    f"{EXTRACT} --scaling caffe --resize stretch --interpolation bilinear --dtype float16",
    f"{EXTRACT} --input-size 16 --max-bytes 1MB --dtype auto --precision float32 --engine openvino",
    "promote logistic --unfreeze conv_b --epochs 1 --learning-rate 1e-4 --lr-decay 0.9 "
    "--patience 1 --keep-tuned --batch-size 8 --seed 1 -o new.keras --store store",
    "promote --best photos --model tiny.keras -o new.keras --json",
    "promote logistic --weights tiny.keras --output new.keras",
    "extract table.csv --model tiny.keras --layer conv_a:max --image-column file "
    "--label-column kind --split-column part --root photos",
    "run pipeline.yaml --runs elsewhere --store store",
    "run pipeline.yaml --json",
    "doctor photos --model tiny.keras --layer conv_a --weights tiny.keras --input-size 16 "
    "--scaling none --resize crop --interpolation bicubic --precision float32 --engine tensorflow "
    "--special-tokens 0",
    "doctor --store store --json",
    f"{EXTRACT} --scaling unit --workers 2",
    f"{TRAIN} SVC --workers 2",
    "run pipeline.yaml --workers 2",
    f"{EXTRACT} --scaling tf --workers {{scheduler}}",
    f"{TRAIN} SVC --param C=2 --workers {{scheduler}}",
    "run pipeline.yaml --workers {scheduler}",
]
# Commands that others come before.
SLOW_BEFORE = {
    "promote --best -o new.keras": "tag logistic a",
}
BEFORE = {
    "tag logistic --remove a": "tag logistic a",
    "heads --tag a": "tag logistic a",
    "refit photos --store store --json": "scan photos --val 0.4",
}

PIPELINE: dict[str, Any] = {
    "name": "flowers",
    "data": {"path": "photos", "val": 0.25},
    "backbone": {"model": "tiny.keras"},
    "layers": ["conv_b:avg"],
    "heads": ["ridge"],
}
NUMBERS: dict[str, Any] = {
    "data": {"path": "numbers.csv", "root": "photos", "image_column": "file", "val": 0.3},
    "heads": [{"head": "ridge", "grid": {"alpha": [1, 2]}}],
}
PIPELINES: list[dict[str, Any]] = [
    {"data": {"path": "photos", "name": "n", "test": 0.2, "seed": 1}},
    {"data": {"path": "photos", "group_by": r"/(\d)"}, "select": {"split": "train"}},
    {
        "data": {
            "path": "table.csv",
            "image_column": "file",
            "label_column": "kind",
            "split_column": "part",
            "root": "photos",
        },
        "select": {"split": "test", "metric": "balanced_accuracy"},
    },
    {
        "backbone": [
            {"model": "tiny.keras", "resize": ["stretch", "crop", "pad"], "layers": ["conv_a:avg"]},
            {"model": "tiny.keras", "special_tokens": 1, "layers": ["conv_a:gem"]},
            {"model": "tiny.keras", "scaling": ["none", "unit", "tf"], "layers": ["conv_b:max"]},
        ],
        "layers": None,
        "select": {"metric": "macro_f1", "split": "val"},
        "promote": {},
    },
    {
        "backbone": {
            "model": "tiny.keras",
            "weights": "tiny.keras",
            "input_size": 16,
            "scaling": ["torch", "caffe"],
            "interpolation": ["bilinear", "bicubic"],
        },
        "extract": {"dtype": "float32", "batch_size": 5, "engine": "openvino"},
    },
    {
        "backbone": {
            "model": "tiny.keras",
            "interpolation": ["lanczos3", "lanczos5", "nearest"],
        },
        "extract": {"dtype": "float16", "engine": "tensorflow", "max_bytes": "1MB"},
        "baseline": {"input_size": 8},
    },
    {
        "backbone": {"model": "tiny.keras", "precision": ["float32", "float16", "bfloat16"]},
        "extract": {"dtype": "auto", "batch_size": "auto", "engine": "auto"},
    },
    {
        "layers": ["conv_a:avg", "conv_b:avg"],
        "heads": [
            {"head": "ridge", "params": {"solver": "lsqr"}, "grid": {"alpha": [1, 2]}, "seed": 2},
            {"head": "knn", "label": "k", "tags": ["a"], "note": "text"},
        ],
        "folds": 3,
        "seeds": 2,
        "baseline": {},
        "promote": {},
    },
    {"folds": 3, "select": {"split": "folds", "metric": "accuracy"}, "promote": {}},
    {"folds": 3, "select": {"split": "val"}},
    {
        "heads": ["logistic"],
        "folds": 3,
        "select": {"metric": "log_loss"},
        "promote": {
            "unfreeze": "conv_b",
            "epochs": 1,
            "learning_rate": 1e-4,
            "lr_decay": 0.9,
            "patience": 1,
            "keep_tuned": True,
            "batch_size": 8,
            "seed": 1,
        },
    },
    {**NUMBERS, "promote": {}},
    {**NUMBERS, "folds": 3, "select": {"metric": "r2"}},
    {**NUMBERS, "folds": 3, "select": {"metric": "rmse"}, "baseline": {}, "promote": {}},
]
STORED: dict[str, Any] = {"name": "many", "data": "photos", "heads": ["knn", "ridge"]}
ON_STORED: list[dict[str, Any]] = [
    {"features": {"model": ["tiny"], "weights": "tiny.keras", "input_size": 16}},
    {"features": {"scaling": "none", "resize": "stretch", "interpolation": "bilinear"}},
    {"features": {"precision": "float32"}},
    {"layers": ["conv_a"], "folds": 3, "seeds": 2},
]


@pytest.fixture
def _all(place: Place, promoted: Path) -> None:
    """All files that the cases name, in the folder of the test."""
    shutil.copy(promoted, "flowers.keras")
    for name, value in (("pipeline", PIPELINE), ("stored", STORED), ("flips", FLIPS)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(value))
    files = sorted(path.relative_to("photos") for path in Path("photos").rglob("*.png"))
    with open("table.csv", "w") as table, open("numbers.csv", "w") as numbers:
        rows, values = csv.writer(table), csv.writer(numbers)
        rows.writerow(["file", "kind", "part"])
        values.writerow(["file", "label"])
        for number, file in enumerate(files):
            rows.writerow([file, file.parent, ("train", "train", "val", "test")[number % 4]])
            values.writerow([file, number / 7])


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a Dask cluster with one worker."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def run(*args: Any) -> str:
    result = featurestore(*args)
    assert result.status == 0, result.err
    assert "Traceback" not in result.err
    return result.out


def run_pipeline(changes: dict[str, Any]) -> None:
    spec = {name: each for name, each in {**PIPELINE, **changes}.items() if each is not None}
    Path("pipeline.yaml").write_text(yaml.safe_dump(spec))
    out = run("run", "pipeline.yaml")
    assert out.splitlines()[-1].startswith("results: runs/flowers/")


def run_on_stored(changes: dict[str, Any]) -> None:
    Path("stored.yaml").write_text(yaml.safe_dump({**STORED, **changes}))
    assert "head" in run("run", "stored.yaml")


@pytest.mark.usefixtures("_all")
@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str) -> None:
    assert run(*shlex.split(line))


@pytest.mark.usefixtures("_all")
@pytest.mark.parametrize(
    ("line", "before"),
    [*BEFORE.items(), *(pytest.param(*each, marks=RELIABILITY) for each in SLOW_BEFORE.items())],
)
def test_commands_after_another(line: str, before: str) -> None:
    run(*shlex.split(before))
    assert run(*shlex.split(line))


@RELIABILITY
@pytest.mark.usefixtures("_all")
@pytest.mark.parametrize("line", SLOW)
def test_slow_commands(line: str, request: pytest.FixtureRequest) -> None:
    if "{scheduler}" in line:
        line = line.format(scheduler=request.getfixturevalue("scheduler"))
    assert run(*shlex.split(line))


@RELIABILITY
@pytest.mark.usefixtures("_all")
@pytest.mark.parametrize("changes", PIPELINES, ids=str)
def test_pipelines(changes: dict[str, Any]) -> None:
    run_pipeline(changes)


@pytest.mark.usefixtures("_all")
@pytest.mark.parametrize("changes", ON_STORED, ids=str)
def test_pipelines_on_stored_features(changes: dict[str, Any]) -> None:
    run_on_stored(changes)


def words() -> dict[str, set[str]]:
    """All words of the cases, by command."""
    found: dict[str, set[str]] = {}
    pairs = {**BEFORE, **SLOW_BEFORE}
    for line in (*COMMANDS, *SLOW, *pairs, *pairs.values()):
        command, *rest = shlex.split(line)
        found.setdefault(command, set()).update(rest)
    return found


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def test_every_option_has_a_case() -> None:
    said = words()
    missing = [
        f"{name} {option}"
        for name, command in commands().items()
        for param in command.params
        if isinstance(param, click.Option)
        for option in (*param.opts, *param.secondary_opts)
        if option not in said.get(name, ())
    ]
    assert not missing


def test_every_choice_of_an_option_has_a_case() -> None:
    said = set().union(*words().values())
    missing = {
        f"{param.opts[0]} {choice}"
        for command in commands().values()
        for param in command.params
        if isinstance(param.type, click.Choice)
        for choice in param.type.choices
        if choice not in said
    }
    assert not missing


def given(spec: Any, under: str = "") -> Iterator[tuple[str, Any]]:
    """The fields that a file gives and their values, those of its parts too."""
    for name in spec.model_fields_set:
        value = getattr(spec, name)
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, Settings) for part in parts):
            for part in parts:
                yield from given(part, f"{under}{name}.")
        for part in parts:
            yield f"{under}{name}", part


def known(kind: type[Settings], under: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a file, and the values that one may have; None if these are not listed."""
    for name, field in kind.model_fields.items():
        part = part_of(field.annotation)
        if part is not None:
            assert issubclass(part, Settings)
            yield from known(part, f"{under}{name}.")
            continue
        yield f"{under}{name}", None
        yield from ((f"{under}{name}", value) for value in literals(field.annotation))


def literals(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return (
        [each for arg in inner for each in literals(arg)]
        if inner
        else [annotation for _ in "." if isinstance(annotation, str)]
    )


def test_every_field_and_its_values_have_a_case() -> None:
    cases = [{**PIPELINE, **case} for case in PIPELINES]
    cases += [{**STORED, **case} for case in ON_STORED]
    used = [pair for case in cases for pair in given(PipelineSpec.model_validate(case))]
    used += [(field, None) for field, _ in used]
    # What is stored has one variant.
    wanted = [
        pair for pair in known(PipelineSpec) if not (pair[0].startswith("features.") and pair[1])
    ]
    assert not [pair for pair in wanted if pair not in used]
