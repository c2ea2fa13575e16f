from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.errors import DamagedError, HeadError, NotFoundError
from featurestore.features import Features
from featurestore.heads import Head, annotate, fit_head, leaderboard


def test_notes_do_not_make_another_head(three: Features) -> None:
    plain = fit_head(three, "knn")
    noted = fit_head(three, "knn", label="mine", tags=["a", "b"], note="for the talk")
    assert noted.id == plain.id
    stored = Head.load("mine", three.store)
    assert (stored.id, stored.label, stored.tags) == (plain.id, "mine", ("a", "b"))
    assert stored.note == noted.note == "for the talk"
    assert fit_head(three, "knn", tags="c").tags == ("a", "b", "c")
    fit_head(three, "knn", label="not kept", save=False)
    assert Head.load(plain.id, three.store) == fit_head(three, "knn")
    assert Head.load(plain.id, three.store).label == "mine"
    assert list(three.store.heads.check(f"heads/{plain.id}")) == []


def test_notes_are_changed_later(three: Features) -> None:
    head = fit_head(three, "knn", tags=["a", "b"], note="old")
    written = annotate(head.id[:6], three.store, tags=["c", "b"], remove=["a"], note="")
    assert written == {"head": head.id, "label": None, "tags": ["b", "c"], "note": ""}
    assert Head.load(head.id, three.store).tags == ("b", "c")
    with pytest.raises(HeadError, match="has no tag 'bb'; did you mean 'b'"):
        annotate(head.id, three.store, remove=["bb"])
    for wrong in ("", "two\nlines"):
        with pytest.raises(HeadError, match="expected one line of text"):
            annotate(head.id, three.store, label=wrong)
    with pytest.raises(NotFoundError, match="featurestore heads"):
        annotate("forest", three.store, label="x")


def test_tags_filter_the_list(three: Features) -> None:
    first = fit_head(three, "knn", tags=["a", "b"])
    second = fit_head(three, "ridge", tags=["a"])

    def tagged(*tags: str) -> set[str]:
        return {row["head"] for row in leaderboard(store=three.store, tags=tags)}

    assert tagged("a") == {first.id, second.id}
    assert tagged("a", "b") == {first.id}
    assert leaderboard(store=three.store, tags="b")[0]["tags"] == ["a", "b"]
    with pytest.raises(HeadError, match="has the tag 'aa'; did you mean 'a'"):
        tagged("aa")


def test_a_label_of_two_heads_is_ambiguous(three: Features) -> None:
    fit_head(three, "knn", label="mine")
    fit_head(three, "ridge", label="mine")
    with pytest.raises(NotFoundError, match=r"'mine' matches 2 heads: knn-.*, ridge-.*; give one"):
        Head.load("mine", three.store)


def test_tags_that_are_written_at_the_same_time_are_all_kept(three: Features) -> None:
    head = fit_head(three, "ridge")
    tags = [f"t{number:02}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tag: annotate(head.id, three.store, tags=[tag]), tags))
    assert sorted(three.store.heads.get(head.id)["tags"]) == tags


def test_a_document_that_is_no_head_takes_no_tags(three: Features) -> None:
    head = fit_head(three, "ridge")
    document = {**three.store.heads.get(head.id), "tags": 3}
    three.store.heads.save("forged", document, {})
    with pytest.raises(DamagedError, match="'tags'"):
        annotate("forged", three.store, tags=["a"])
