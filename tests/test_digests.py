import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featurestore.digests import (
    digest_array,
    digest_bytes,
    digest_fields,
    digest_set,
    distinct,
    packed,
    row_id,
    short,
    unit_interval,
    unpacked,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_digests_are_those_of_the_published_algorithm():
    # BLAKE2b with 256 bits of "abc", as b2sum -l 256 gives it.
    whole = "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"
    assert digest_bytes(b"abc") == f"blake2b:{whole}"
    assert short(digest_bytes(b"abc")) == whole[:12]
    assert row_id(digest_bytes(b"abc")) == bytes.fromhex(whole[:32])


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_order_of_fields_does_not_matter(fields):
    assert digest_fields(fields) == digest_fields(dict(reversed(fields.items())))


@given(st.dictionaries(st.text(), json_values, max_size=4), st.text(), json_values, json_values)
def test_another_value_is_another_digest(fields, name, one, other):
    # JSON tells 1 from 1.0 and true, which Python does not.
    if repr(one) == repr(other):
        return
    assert digest_fields({**fields, name: one}) != digest_fields({**fields, name: other})


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}, b"x"])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        digest_fields({"value": value})


@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=4)))
def test_memory_layout_and_byte_order_of_an_array_do_not_matter(array):
    want = digest_array(array)
    assert digest_array(np.asfortranarray(array)) == want
    assert digest_array(array.astype(">f4")) == want
    padded = np.stack([array, array], axis=-1)[..., 0]
    assert digest_array(padded) == want


def test_type_and_shape_of_an_array_matter():
    array = np.zeros((2, 6), np.float32)
    assert len({digest_array(each) for each in (
        array, array.reshape(3, 4), array.ravel(), array.view(np.int32), array.astype(np.float16)
    )}) == 5  # fmt: skip
    with pytest.raises(TypeError):
        digest_array(np.array([object()]))


@given(st.lists(st.binary(max_size=4).map(digest_bytes), max_size=8), st.randoms())
def test_a_set_has_neither_order_nor_repetition(digests, random):
    shuffled = digests + digests[:2]
    random.shuffle(shuffled)
    found, first, rows = distinct(packed(shuffled))
    assert list(unpacked(found)) == sorted(set(digests))
    assert [shuffled[at] for at in first] == list(unpacked(found))
    assert list(unpacked(found[rows])) == shuffled
    written = "".join(f"{each}\n" for each in sorted(set(digests)))
    assert digest_set(found) == digest_bytes(written.encode())


def test_unit_interval_is_uniform_and_depends_on_the_seed():
    digests = [digest_bytes(bytes([a, b])) for a in range(64) for b in range(64)]
    values = np.array([unit_interval(digest, 0) for digest in digests])
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=16, range=(0, 1))[0]
    # Chi-squared with 15 degrees of freedom: 37.7 is exceeded once in a thousand.
    assert ((counts - 256.0) ** 2 / 256.0).sum() < 37.7
    assert abs(np.corrcoef(values, [unit_interval(each, 1) for each in digests])[0, 1]) < 0.06


def test_another_process_gives_the_same_digests():
    code = (
        "from featurestore.digests import digest_fields; "
        "print(digest_fields({'b': [1, 2.5, None], 'a': {'x': True}}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert outputs == {digest_fields({"a": {"x": True}, "b": [1, 2.5, None]}) + "\n"}
