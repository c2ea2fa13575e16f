"""Finding feature groups: all of them, by what decides them, or by what a text means."""

from __future__ import annotations

from featurestore.digests import short
from featurestore.errors import NotFoundError, StoreError, nearest
from featurestore.store.files import Files
from featurestore.store.groups import FOLDER, Damaged, created, open_path, paths, read_key
from featurestore.store.key import FeatureKey, KeyPath
from featurestore.store.variants import Variant, choices


def survey(files: Files) -> tuple[list[FeatureKey], list[Damaged]]:
    """List the groups, those whose attributes cannot be read apart from the others."""
    found, damaged = [], []
    for path in paths(files):
        if not created(files, path):
            continue
        try:
            group = open_path(files, path)
        except StoreError as error:
            damaged.append(Damaged(f"{FOLDER}/{path}", str(error)))
        else:
            found += [group.key] if group is not None else []
    return found, damaged


def keys(files: Files) -> list[FeatureKey]:
    """Keys of the groups that can be opened."""
    return survey(files)[0]


def find(
    files: Files, prefix_digest: str, ref: str, dataset_digest: str, model: str | None
) -> FeatureKey | None:
    """Find features by what decides them, whatever the model is called.

    The prefix digest ends at the layer, so only the reduction need be the same beside it: a
    layer that has another name in another model is found too, after those of the same name.
    """
    reduction = ref.partition(":")[2]
    candidates = []
    for path in paths(files):
        parts = KeyPath.parse(path)
        assert parts is not None
        wanted = (short(prefix_digest), short(dataset_digest), reduction)
        if (parts.prefix, parts.dataset, parts.ref.partition(":")[2]) == wanted:
            candidates.append((parts.model != model, parts.ref != ref, path))
    for *_, path in sorted(candidates):
        if not created(files, path):
            continue
        try:
            key = read_key(files, path)
        except (FileNotFoundError, StoreError):
            continue  # Damaged: no help to others, and no hindrance.
        if (key.prefix_digest, key.dataset_digest) == (prefix_digest, dataset_digest):
            return key
    return None


def match(files: Files, text: str, asked: Variant) -> str:
    """Find the path of the one group that a text means, damaged or not.

    The text is a whole key, or model and layer, or any part of a key. Where a variant is asked
    for, only groups of it that can be read count.

    Raises
    ------
    NotFoundError
        If no key or more than one is meant.
    """
    known = {path: KeyPath.parse(path) for path in paths(files) if created(files, path)}
    if asked.asked():
        known = {path: key for path, key in known.items() if _variant(files, path).fits(asked)}
    names = {
        path: (str(key), f"{key.model}/{key.ref}", key.ref) for path, key in known.items() if key
    }
    tests = (
        lambda path: text in (names[path][0], path),
        lambda path: text in names[path][1:],
        lambda path: text in names[path][0] or text in path,
    )
    for test in tests:
        hits = [path for path in names if test(path)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            shown = ", ".join(names[path][0] for path in hits[:4])
            more = ", …" if len(hits) > 4 else ""
            _, options = choices([_variant(files, path) for path in hits])
            raise NotFoundError(
                f"{text!r} means {len(hits)} keys: {shown}{more}; give {options or 'more of one'}"
            )
    whole = [each[0] for each in names.values()]
    options_text = f" with {asked.options()}" if asked.asked() else ""
    raise NotFoundError(
        f"no features {text!r}{options_text} in {files.location}, {nearest(text, whole)}; "
        "list them with `featurestore ls`"
    )


def _variant(files: Files, path: str) -> Variant:
    try:
        group = open_path(files, path)
    except StoreError:
        group = None
    return Variant() if group is None else Variant.of(group.provenance)
