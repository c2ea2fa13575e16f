from __future__ import annotations

import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.digests import digest_bytes
from featurestore.errors import InputError
from featurestore.store.key import FeatureKey, KeyPath, encode_segment, name_of

HOSTILE = ["..", ".", "../x", "a/b", "x.", "...", "%2E%2E", "~", " ", "\\"]
HOSTILE += ["block5_pool:avg", "größe", "层", "a\x00b", "\udcff", "-", "x-0123456789ab", "C:", "*?"]

names = st.text(min_size=1, max_size=12)


@given(names | st.sampled_from(HOSTILE))
def test_segment_is_portable_and_gives_the_name_back(name: str) -> None:
    segment = encode_segment(name)
    assert name_of(segment) == name
    assert re.fullmatch(r"[A-Za-z0-9._%-]+", segment)
    assert segment not in (".", "..")
    assert not segment.endswith(".")


short_names = st.text(min_size=1, max_size=6)


@given(short_names, short_names, st.binary(max_size=4), st.binary(max_size=4))
@example("..", "..", b"", b"")
@example("a/b@c", "x-0123456789ab", b"", b"")
def test_key_round_trip_stays_inside(model: str, ref: str, prefix: bytes, dataset: bytes) -> None:
    key = FeatureKey(model, ref, digest_bytes(prefix), digest_bytes(dataset))
    assert KeyPath.parse(key.path) == key.short
    assert key.short.encode() == key.path
    assert os.path.normpath(key.path) == key.path
    assert "/" not in key.path


def test_plain_names_stay_readable() -> None:
    key = FeatureKey("vgg16", "block4_pool", "blake2b:" + "3f" * 32, "blake2b:" + "9c" * 32)
    assert str(key) == "vgg16/block4_pool-3f3f3f3f3f3f/9c9c9c9c9c9c"
    assert key.path == "vgg16@block4_pool-3f3f3f3f3f3f@9c9c9c9c9c9c"
    with pytest.raises(InputError, match="at most 255 characters"):
        FeatureKey("m" * 180, "l" * 180, key.prefix_digest, key.dataset_digest).path  # noqa: B018


@pytest.mark.parametrize("name", ["", "x" * 201, "层" * 67])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="1 to 200 characters"):
        encode_segment(name)


@pytest.mark.parametrize(
    "segment",
    ["", "a", "a@b", "a@b-0123456789ab@c", "a@-0123456789ab@0123456789ab",
     "@b-0123456789ab@0123456789ab", "a@b-0123456789AB@0123456789ab", "zarr.json",
     "a@b-0123456789ab@0123456789ab@c"],
)  # fmt: skip
def test_other_names_are_no_keys(segment: str) -> None:
    assert KeyPath.parse(segment) is None
