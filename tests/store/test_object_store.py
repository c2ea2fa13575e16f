"""Object stores have no locks: what several processes write at once is not lost or torn."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from featurestore.errors import DamagedError, StoreError
from featurestore.store import FeatureStore
from featurestore.store.documents import write_json
from featurestore.store.remote import RemoteFiles
from tests.reliability.bench import Bench
from tests.reliability.processes import Commands, Running, Strike
from tests.s3 import S3Server
from tests.store.conftest import BLOCK, TAIL, digests_of, filled, ids_of, key_of, rows_of
from tests.store.test_files import test_write_read_list_remove as behaves
from tests.toys import Result, featurestore

pytestmark = pytest.mark.usefixtures("small_blocks")


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def objects() -> FeatureStore:
    return FeatureStore(memory(), create=True)


def together(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def damages(store: FeatureStore) -> list[Any]:
    return [damage for item in store.items() for damage in store.check(item)]


def test_many_files() -> None:
    files = RemoteFiles(memory())
    for number in range(1100):
        files.write(f"many/{number}", b"")
    assert len(files.names("many")) == len(files.sizes("many")) == 1100
    files.remove(*files.sizes("many"), "nothing")
    assert files.names("") == []


# What a condition does


def first_wins(files: RemoteFiles) -> None:
    assert files.write("a", b"1", new=True)
    assert not files.write("a", b"2", new=True)
    assert not files.replace("a", b"2", b"3")
    assert files.replace("a", b"1", b"4")
    assert files.read("a") == b"4"
    assert not files.replace("b", b"", b"5")
    assert files.names("") == ["a"]


def test_only_one_is_first() -> None:
    first_wins(RemoteFiles(memory()))


def test_a_block_that_another_process_wrote_stays(objects: FeatureStore) -> None:
    group = filled(objects, 10)
    rows = group.read_block(0)
    group.write_block(0, rows + 1)
    assert np.array_equal(group.read_block(0), rows)


def test_a_damaged_block_is_replaced(objects: FeatureStore) -> None:
    group = filled(objects, 10)
    rows = group.read_block(0)
    group.features.files.write(group.features.file(0), b"junk")
    group.write_block(0, rows)
    assert np.array_equal(group.read_block(0), rows)


def test_a_late_writer_of_float16_leaves_the_float32_that_replaced_it(
    objects: FeatureStore,
) -> None:
    late = filled(objects, 10)
    group = filled(objects, 10, dtype="float32")
    assert objects.features.take_over(group.key)
    late.write_block(0, rows_of(digests_of(10)[:BLOCK], TAIL))
    assert objects.features.get(group.key) == group
    assert group.read_block(0).dtype == "float32"
    assert damages(objects) == []


def test_of_several_who_create_the_same_features_all_get_the_same(objects: FeatureStore) -> None:
    for salt in map(str, range(20)):
        digests = digests_of(10, salt)

        def create(dtype: str, digests: list[str] = digests) -> Any:
            return objects.features.create(
                key_of(digests),
                shape=(10, *TAIL),
                dtype=dtype,
                sample_ids=ids_of(digests),
                provenance={"asked": dtype},
            )

        groups = together(*(lambda kind=kind: create(kind) for kind in ("float16", "float32") * 2))
        assert len({json.dumps(group.attrs) for group in groups}) <= 2  # One of each type.
    assert damages(objects) == []


def test_no_change_of_a_head_is_lost(objects: FeatureStore) -> None:
    objects.heads.save("h", {"tags": []}, {})

    def tag(name: str) -> None:
        objects.heads.update("h", lambda head: {"tags": [*head["tags"], name]})

    together(*(lambda name=str(number): tag(name) for number in range(8)))
    assert sorted(objects.heads.get("h")["tags"]) == list("01234567")


def test_a_head_that_two_save_is_of_one_of_them(objects: FeatureStore) -> None:
    for number in range(20):
        head = f"head-{number}"

        def save(content: bytes, head: str = head) -> None:
            files = dict.fromkeys(("model.skops", "rows.npz", "scores.json"), content)
            objects.heads.save(head, {"by": content.decode()}, files)

        together(lambda: save(b"one"), lambda: save(b"two"), lambda: save(b"three"))
        by = objects.heads.get(head)["by"].encode()
        assert {objects.heads.read(head, name) for name in ("model.skops", "scores.json")} == {by}
    assert damages(objects) == []
    garbage = objects.garbage()
    assert {each.reason for each in garbage} <= {"its head does not list it"}
    objects.gc(garbage)
    assert damages(objects) == objects.garbage() == []


def test_what_was_written_within_a_day_is_no_garbage(objects: FeatureStore) -> None:
    """Another process may be about to use it, and has no lock to show that."""
    filled(objects, 10)
    objects._files.write("heads/new/model.0123456789ab.skops", b"half a head")
    both = objects.garbage()
    assert len(both) == 2
    objects._files.grace = timedelta(days=1)
    assert objects.garbage() == []
    assert objects.gc(both) == 0


def test_a_head_document_names_no_file_elsewhere(objects: FeatureStore) -> None:
    objects.heads.save("h", {}, {"model.skops": b"x"})
    listing = {"../../datasets/secret.json": objects.heads.get("h")["files"]["model.skops"]}
    write_json(objects._files, "heads/h/head.json", {"id": "h", "files": listing})
    with pytest.raises(DamagedError, match="not a document of the head"):
        objects.heads.read("h", "../../datasets/secret.json")


def test_a_forked_process_says_so_in_place_of_hanging(objects: FeatureStore) -> None:
    ready, told = os.pipe()
    if not (child := os.fork()):
        try:
            objects.features.keys()
        except StoreError as error:
            os.write(told, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(told)
    assert b"this process was forked after its parent had used the object" in os.read(ready, 1000)
    os.close(ready)


def test_a_password_in_a_url_is_not_shown() -> None:
    with pytest.raises(StoreError, match="holds a user or password") as caught:
        FeatureStore("s3://key:secret@bucket/store")
    assert "secret" not in str(caught.value)


def test_a_url_of_no_object_store() -> None:
    with pytest.raises(
        StoreError, match=r"cannot open sftp://x/y; expected a folder, or s3://BUCK"
    ):
        FeatureStore("sftp://x/y")


# A real server


Run = Callable[..., Result]
REF = "conv_b:avg"
EXTRACT = ["extract", "photos", "--model", "tiny.keras", "--layer", "conv_a", "--layer", REF]
EXTRACT += ["--val", "0.3", "--json"]


@pytest.fixture(scope="module")
def bench(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FEATURESTORE_STORE", raising=False)
        made = Bench(commands, tmp_path_factory.mktemp("bench"), each=12, size=64, channels=64)
        made.put("fresh")
        yield made


@pytest.fixture(scope="module")
def start(bench: Bench, s3: S3Server) -> Callable[..., Running]:
    """Start a command on a store, with what a client of the server needs."""

    def start(store: str, *command: str, **options: Any) -> Running:
        return bench.start(*command, "--store", store, **{**s3.environment, **options})

    return start


@pytest.fixture(scope="module")
def run(start: Callable[..., Running]) -> Run:
    return lambda store, *command, **options: start(store, *command, **options).wait()


@pytest.fixture(scope="module")
def local(bench: Bench, run: Run) -> dict[str, bytes]:
    """The files of the same features in a local store."""
    assert run("local", *EXTRACT).status == 0
    return {
        str(path.relative_to(bench.place / "local")): path.read_bytes()
        for path in (bench.place / "local" / "features").rglob("*")
        if path.is_file()
    }


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.bucket()


@pytest.mark.reliability
def test_files_on_a_server(bucket: str) -> None:
    behaves(f"s3://{bucket}/deep/store")
    behaves(f"s3://{bucket}")
    files = RemoteFiles(f"s3://{bucket}/x")
    first_wins(files)
    assert pickle.loads(pickle.dumps(files)).read("a") == b"4"


@pytest.mark.reliability
def test_a_store_on_a_server_equals_the_local_one_byte_for_byte(
    run: Run, local: dict[str, bytes], s3: S3Server, bucket: str
) -> None:
    store = f"s3://{bucket}/store"
    killed = run(store, *EXTRACT, strike=Strike(signal.SIGKILL, 2, event="RowsComputed"))
    assert killed.status == -signal.SIGKILL
    resumed = run(store, *EXTRACT)
    assert resumed.status == 0, resumed.err
    assert s3.objects(bucket, "store/features/") == {
        f"store/{path}": data for path, data in local.items()
    }
    rows = resumed.json["features"]["conv_a"]
    assert 0 < rows["rows_computed"] < 36

    block = next(path for path in sorted(local) if "conv_a" in path and "c.1.0" in path)
    s3.client().put_object(Bucket=bucket, Key=f"store/{block}", Body=b"junk")
    verified = run(store, "verify", "--json")
    assert [each["block"] for each in verified.json["damaged"]] == [1]
    assert run(store, "repair").status == 0
    assert s3.objects(bucket, f"store/{block}") == {f"store/{block}": local[block]}

    train = ["train", "photos", "--model", "tiny", "--layer", REF, "--head", "logistic", "--json"]
    head = run(store, *train)
    in_folder = run("local", *train)
    assert head.json == in_folder.json, head.err
    assert run(store, "tag", "logistic", "best").status == 0
    promoted = run(store, "promote", "logistic", "-o", "remote.keras", "--json")
    assert promoted.json["parity"]["agreement"] == 1, promoted.err
    removed = run(store, "rm", "photos", "--yes")
    assert removed.status == 0, removed.err
    assert run(store, "gc", "--yes").status == 0
    assert list(s3.objects(bucket)) == ["store/features/zarr.json"]


@pytest.mark.reliability
def test_two_writers_write_each_block_once(
    run: Run, start: Callable[..., Running], local: dict[str, bytes], s3: S3Server, bucket: str
) -> None:
    bucket = s3.bucket(versions=True)
    store = f"s3://{bucket}/store"
    writers = [start(store, *EXTRACT) for _ in range(2)]
    for each in [writer.wait() for writer in writers]:
        assert each.status == 0, each.err
    found = s3.objects(bucket, "store/features/")
    assert {f"store/{path}" for path in local} <= set(found)
    chunks = {path for path in local if path.rpartition("/")[2].startswith("c.")}
    assert {found[f"store/{path}"] == local[path] for path in chunks} == {True}
    written = s3.versions(bucket, "store/features/")
    assert {written[f"store/{path}"] for path in chunks if "/features/c." in path} == {1}
    assert run(store, "verify").status == 0


@pytest.mark.reliability
def test_two_writers_who_both_find_that_float16_is_too_small(
    run: Run, start: Callable[..., Running], bench: Bench, s3: S3Server, bucket: str
) -> None:
    import keras

    image = keras.Input((16, 16, 3))
    huge = keras.layers.Rescaling(1000.0, name="huge")(image)
    keras.Model(image, huge, name="scaled").save(bench.place / "scaled.keras")
    command = ["extract", "photos", "--model", "scaled.keras", "--layer", "huge"]
    command += ["--scaling", "none"]
    alone = run("alone", *command)
    assert alone.status == 0, alone.err
    store = f"s3://{bucket}/store"
    writers = [start(store, *command) for _ in range(2)]
    for each in [writer.wait() for writer in writers]:
        assert each.status == 0, each.err
    assert run(store, "verify").status == 0
    chunks = {
        f"store/{path.relative_to(bench.place / 'alone')}": path.read_bytes()
        for path in (bench.place / "alone" / "features").rglob("c.*")
    }
    found = s3.objects(bucket, "store/features/")
    assert {path: found.get(path) for path in chunks} == chunks


@pytest.mark.reliability
def test_a_server_that_fails_now_and_then_changes_nothing(
    run: Run, local: dict[str, bytes], s3: S3Server, bucket: str
) -> None:
    store = f"s3://{bucket}/store"
    result = run(store, *EXTRACT, AWS_ACCESS_KEY_ID="unlucky")
    assert result.status == 0, result.err
    found = s3.objects(bucket, "store/features/")
    assert found == {f"store/{path}": data for path, data in local.items()}
    assert run(store, "verify", AWS_ACCESS_KEY_ID="unlucky").status == 0


@pytest.mark.reliability
def test_a_refusal_is_not_taken_for_damage(run: Run, bucket: str) -> None:
    store = f"s3://{bucket}/store"
    FeatureStore(store, create=True)
    assert run(store, "ls", AWS_ACCESS_KEY_ID="reader").status == 0
    error = run(store, "ls", AWS_ACCESS_KEY_ID="lister").error
    assert "access was denied (AccessDenied: Refused)" in error
    assert "move" not in error


@pytest.mark.reliability
def test_plain_zarr_reads_a_store_on_a_server(s3: S3Server, bucket: str) -> None:
    store = f"s3://{bucket}/store"
    filled(FeatureStore(store, create=True), 19)
    program = (
        "import sys, zarr, xarray\n"
        "from obstore.store import from_url\n"
        "from zarr.storage import ObjectStore\n"
        f"bucket = from_url({store!r} + '/features', client_options={{'allow_http': True}})\n"
        "place = ObjectStore(bucket, read_only=True)\n"
        "for name, group in zarr.open_group(place, mode='r').groups():\n"
        "    data = xarray.open_zarr(place, group=name, consolidated=False)\n"
        "    print(len(data['features'].values), group['features'].nchunks_initialized)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **s3.environment},
    )
    assert done.stdout == "19 3\n", done.stderr


def _closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"bucket": "nowhere"}, "there is no bucket 'nowhere'; create it"),
        ({"AWS_ACCESS_KEY_ID": "stranger"}, "access was denied (InvalidAccessKeyId: Refused); "),
        ({"AWS_ACCESS_KEY_ID": "reader"}, "cannot write s3://"),
        ({"AWS_ENDPOINT_URL": ""}, "the server cannot be reached (Connection refused); check "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: Run, s3: S3Server, bucket: str, environment: dict[str, str], message: str
) -> None:
    where = environment.pop("bucket", bucket)
    if "AWS_ENDPOINT_URL" in environment:
        environment["AWS_ENDPOINT_URL"] = _closed_port()
    result = run(f"s3://{where}/store", *EXTRACT, **environment)
    assert message in result.error
    assert s3.objects(bucket) == {}


@pytest.mark.reliability
def test_without_credentials(
    bench: Bench, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3.environment:
        if name.startswith("AWS_") and "KEY" in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(bench.place))
    result = featurestore("ls", "--store", f"s3://{bucket}-other/store")
    assert "no credentials were found; set AWS_ACCESS_KEY_ID" in result.error
