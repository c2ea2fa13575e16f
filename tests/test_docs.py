"""The pages and the help texts are tests: what they show runs, and what there is they show.

Pages are run as users read them: in a folder that has ``photos/`` and ``my_model.keras``, with a
few layers of MobileNetV2 in the place of the whole network, which runs with ``-m slow``.
A block that needs a real download stands under ``<!-- not run: needs the ImageNet weights -->``.
A YAML block whose first line is ``# NAME.yaml`` is the file of that name.
"""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import featurestore as fs
from featurestore.cli import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*dict.fromkeys([*PAGES, *sorted(ROOT.glob("*/README.md")), ROOT / "CONTRIBUTING.md"])]
MODULES = sorted((ROOT / "featurestore").rglob("*.py"))
WITH_EXAMPLES = [file for file in MODULES if ">>>" in file.read_text(encoding="utf-8")]
# Pages whose command lines run too, in their place among the Python blocks.
RUN_COMMANDS = ("quickstart.md", "extraction.md", "growing.md")
# Pages that make their own photos, or look at a store that is there already.
OWN_PHOTOS = ("datasets.md",)
READY_STORE = ("format.md", "stores.md")
# Pages that take seconds.
LONG = ("extraction.md", "growing.md", "heads.md", "pipelines.md", "promotion.md", "quickstart.md")

FENCE = re.compile(
    r"(?P<skip><!-- not run: .* -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMANDS = click.Context(cli)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    runs: bool

    def compiled(self) -> Any:
        # Blank lines before it, so that a traceback shows the line of the page.
        return compile("\n" * self.line + self.text, str(self.page), "exec")


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    matching = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        block = Block(page, line, match["language"], match["text"], match["skip"] is None)
        if not languages or block.language in languages:
            matching.append(block)
    return matching


def commands(text: str) -> Iterator[list[str]]:
    """Command lines of featurestore in a shell block: the words after the program's name."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\||;", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "featurestore":
                yield words[1:]


def parse(words: list[str]) -> None:
    """Let click read a command line without running it; raises for what it does not know."""
    command = cli.get_command(COMMANDS, words[0])
    assert command is not None, f"no command {words[0]!r}"
    command.make_context(words[0], words[1:])


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def quick_or_not(pages: list[Path]) -> list[Any]:
    """Mark the pages that train for seconds, so that they run with the reliability tests."""
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=pytest.mark.reliability if page.name in LONG else (),
        )
        for page in pages
    ]


# ---------------------------------------------------------------------------- what pages find


def write_photos(folder: Path) -> None:
    """Write 18 photos in three classes that differ in colour, brightness and noise.

    Under their names they are bitmaps, whose bytes no codec's version changes: the splits follow
    from them.
    """
    generator = np.random.default_rng(0)
    for kind, colour in {"cat": (60, 90, 160), "dog": (130, 120, 60), "fox": (190, 90, 40)}.items():
        (folder / kind).mkdir(parents=True)
        for number in range(1, 7):
            pixels = generator.normal(colour, 20, (48, 64, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / kind / f"{number:03}.jpg", "BMP")


def small_model() -> Any:
    """Build a small functional model that scales its input itself."""
    import keras

    image = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255.0)(image)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Conv2D(16, 3, activation="relu", name="top")(x))


def few_layers(weights: str | None, include_top: bool, input_shape: tuple[int, int, int]) -> Any:
    """Build the layers of MobileNetV2 that pages name, and little between them."""
    from keras import Input, Model, layers

    x = image = Input(input_shape)
    for name, channels in {"Conv1": 8, "block_6_expand": 12, "block_13_expand": 16}.items():
        x = layers.Conv2D(channels, 3, strides=4, use_bias=False, name=name)(x)
        x = layers.BatchNormalization(name=f"{name}_BN")(x)
        x = layers.ReLU(6.0, name=f"{name}_relu")(x)
    x = layers.Conv2D(24, 1, name="Conv_1")(x)
    return Model(image, layers.ReLU(6.0, name="out_relu")(x), name="mobilenetv2")


def all_layers(folder: Path) -> None:
    """Save a MobileNetV2 where Keras keeps its downloads in a folder."""
    kept = folder / "models"
    kept.mkdir(parents=True)
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_160_no_top.h5"
    network_of_random_weights().save(kept / name)


def network_of_random_weights() -> Any:
    """Build a MobileNetV2 whose activations keep their size from layer to layer.

    As it is drawn they fade to nothing, which float16 cannot hold apart.
    """
    import keras

    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(160, 160, 3)
    )
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    noise = np.random.default_rng(0).uniform(-1, 1, (8, 160, 160, 3))
    network(noise.astype(np.float32), training=True)
    return network


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a page runs in."""
    import keras

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATURESTORE_STORE", raising=False)
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setattr(keras.applications, "MobileNetV2", few_layers)
    small_model().save(tmp_path / "my_model.keras")
    return tmp_path


def fill_store(place: Path) -> None:
    import featurestore as fs

    photos = fs.Dataset.open(place / "photos")
    backbone = fs.Backbone.open(place / "my_model.keras")
    fs.extract(photos, backbone, ["pool", "top:avg"], fs.FeatureStore(place / "store", create=True))


# ---------------------------------------------------------------------------- pages


@pytest.mark.parametrize("page", quick_or_not(PAGES))
def test_a_page_runs(page: Path, place: Path) -> None:
    run(page, place)


@pytest.mark.slow
@pytest.mark.parametrize("page", named([README, ROOT / "docs" / "quickstart.md"]))
def test_a_page_runs_on_the_whole_network(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras import applications
    from keras.src.backend import config

    all_layers(tmp_path / "keras")
    whole = applications.MobileNetV2
    place = request.getfixturevalue("place")
    monkeypatch.setattr(applications, "MobileNetV2", whole)
    # KERAS_HOME counts only before Keras is imported.
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path / "keras"))
    run(page, place)


def run(page: Path, place: Path) -> None:
    """Run the blocks of a page, one after the other."""
    if page.name not in OWN_PHOTOS:
        write_photos(place / "photos")
    if page.name in READY_STORE:
        fill_store(place)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "yaml" and (file := re.match(r"# (\S+\.yaml)\n", block.text)):
            (place / file[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python" and block.runs:
            exec(block.compiled(), names)
        elif block.language == "python":
            block.compiled()
        elif block.language == "sh" and block.runs and page.name in RUN_COMMANDS:
            for words in commands(block.text):
                result = CliRunner().invoke(cli, words, catch_exceptions=False)
                assert result.exit_code == 0, (words, result.output)


@pytest.mark.parametrize("page", named(LINKED))
def test_the_command_lines_of_a_page_parse(page: Path) -> None:
    for block in blocks(page, "sh", "console", "bash"):
        for words in commands(block.text):
            parse(words)


@pytest.mark.parametrize("page", named(LINKED))
def test_the_commands_that_a_sentence_names_exist(page: Path) -> None:
    for text in re.findall(r"`featurestore ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
        words = text.split()
        command = cli.get_command(COMMANDS, words[0])
        assert command is not None, text
        known = {name for param in command.params for name in param.opts}
        options = {word.strip("[]").partition("=")[0] for word in words[1:] if "--" in word}
        assert options <= {*known, "--help"}, text


@pytest.mark.parametrize("page", named(LINKED))
def test_the_links_of_a_page_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_readme_begins_with_two_commands_that_work() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    runs, tests = (line for line in lines[:40] if line.startswith("python3 -m venv"))
    assert any("val accuracy" in line for line in lines[:25])  # what the first one prints
    assert "pip install -e . " in runs
    assert "data/fetch.py textures mobilenetv2" in runs
    assert list(commands(runs)) == [["run", "pipelines/quickstart.yaml"]]
    assert (ROOT / "pipelines" / "quickstart.yaml").is_file()
    assert 'pip install -e ".[dev]"' in tests
    assert tests.endswith("python -m pytest")


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = set(LINK.findall(index.read_text(encoding="utf-8")))
    assert {page.name for page in PAGES if page.parent == index.parent} - {index.name} <= linked


# ---------------------------------------------------------------------------- help texts


@pytest.mark.parametrize("name", cli.list_commands(COMMANDS))
def test_a_command_has_help_with_an_example_and_a_place_in_the_pages(name: str) -> None:
    command = cli.get_command(COMMANDS, name)
    assert command is not None
    assert command.help
    lines = list(commands(command.help.partition("Example:")[2]))
    assert lines, f"{name} --help has no example"
    assert all(words[0] == name for words in lines)
    for words in lines:
        parse(words)
    undescribed = [
        param.name for param in command.params if isinstance(param, click.Option) and not param.help
    ]
    assert not undescribed
    docs = [page for page in PAGES if page != README]
    assert any(f"featurestore {name}" in page.read_text(encoding="utf-8") for page in docs)


@pytest.mark.parametrize("file", named(WITH_EXAMPLES))
def test_the_examples_of_a_module(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = file.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_the_reference_is_what_the_code_says() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "reference.py"))["page"]()
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert text == page, "run: python docs/reference.py"


def test_the_page_on_python_names_all_that_is_public() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    missing = [name for name in fs.__all__ if f"fs.{name}" not in text and f"`{name}`" not in text]
    assert not missing
