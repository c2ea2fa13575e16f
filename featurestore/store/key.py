"""The name of a feature array: which model, cut where, over which data set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from featurestore.digests import SHORT, short
from featurestore.errors import InputError

# A name may have 255 bytes on every file system in use; temporary files add a suffix.
LONGEST_NAME = 255
LONGEST_SEGMENT = 200

_LAYER = re.compile(rf"(.+)-([0-9a-f]{{{SHORT}}})", re.DOTALL)
_DATASET = re.compile(rf"[0-9a-f]{{{SHORT}}}")


def encode_segment(text: str) -> str:
    """Encode any name as one path segment that every file system and object store accepts.

    Characters outside ``[A-Za-z0-9._-]`` are percent-encoded as UTF-8, and so is a dot at the end
    (and thereby ``.`` and ``..``). `name_of` gives the name back. InputError for a name that is
    empty or too long for a file.

    Examples
    --------
    >>> encode_segment("block5_pool:avg")
    'block5_pool%3Aavg'
    >>> encode_segment("..")
    '.%2E'
    """
    # quote() leaves "~" alone.
    segment = quote(text, safe="", errors="surrogatepass").replace("~", "%7E")
    if segment.endswith("."):
        segment = segment[:-1] + "%2E"
    if not 0 < len(segment) <= LONGEST_SEGMENT:
        raise InputError(
            f"{text[:40]!r} cannot name a model, layer, data set or head: it has {len(segment)} "
            "characters once encoded",
            f"1 to {LONGEST_SEGMENT} characters",
        )
    return segment


def name_of(segment: str) -> str | None:
    """Return the name that a segment encodes; None if `encode_segment` would not give it."""
    name = unquote(segment, errors="surrogatepass")
    try:
        return name if encode_segment(name) == segment else None
    except InputError:
        return None


@dataclass(frozen=True)
class KeyPath:
    """The name of a feature group's folder: whole names, short digests.

    Parameters
    ----------
    model : str
        Name of the backbone.
    ref : str
        Layer ref, such as ``block5_pool:avg``.
    prefix, dataset : str
        First 12 hex digits of the prefix digest and of the dataset digest.
    """

    model: str
    ref: str
    prefix: str
    dataset: str

    @classmethod
    def parse(cls, segment: str) -> KeyPath | None:
        """Read ``<model>@<layer ref>-<prefix>@<dataset>``; None for a name of another form."""
        names = [name_of(part) for part in segment.split("@")]
        if len(names) != 3 or None in names:
            return None
        model, layer, dataset = map(str, names)
        parts = _LAYER.fullmatch(layer)
        if not parts or not _DATASET.fullmatch(dataset):
            return None
        return cls(model, parts[1], parts[2], dataset)

    @property
    def reduction(self) -> str:
        """How the activation is reduced; empty if it is stored whole."""
        return self.ref.partition(":")[2]

    def encode(self) -> str:
        """Return the name, its parts percent-encoded.

        Raises
        ------
        InputError
            If it is too long for a file name.
        """
        parts = (self.model, f"{self.ref}-{self.prefix}", self.dataset)
        segment = "@".join(map(encode_segment, parts))
        if len(segment) > LONGEST_NAME:
            raise InputError(
                f"the names of model {self.model!r} and layer {self.ref!r} have {len(segment)} "
                "characters once encoded",
                f"at most {LONGEST_NAME} characters",
            )
        return segment

    def __str__(self) -> str:
        return f"{self.model}/{self.ref}-{self.prefix}/{self.dataset}"


@dataclass(frozen=True)
class FeatureKey:
    """Identity of a feature array.

    Parameters
    ----------
    model : str
        Name of the backbone: part of the path, for people; the identity is the prefix digest.
    ref : str
        Text of the layer ref: ``block4_pool``, ``block5_pool:avg``.
    prefix_digest : str
        Whole digest of what decides the activation at the cut.
    dataset_digest : str
        Whole digest of the set of sample digests.

    Examples
    --------
    >>> key = FeatureKey("vgg16", "block5_pool:avg", "blake2b:" + "3f" * 32, "blake2b:" + "9c" * 32)
    >>> str(key)
    'vgg16/block5_pool:avg-3f3f3f3f3f3f/9c9c9c9c9c9c'
    >>> key.path
    'vgg16@block5_pool%3Aavg-3f3f3f3f3f3f@9c9c9c9c9c9c'
    """

    model: str
    ref: str
    prefix_digest: str
    dataset_digest: str

    @property
    def short(self) -> KeyPath:
        """The key with its digests shortened, as paths and messages carry it."""
        return KeyPath(self.model, self.ref, short(self.prefix_digest), short(self.dataset_digest))

    @property
    def path(self) -> str:
        """Name of the group's folder below ``features/``, percent-encoded."""
        return self.short.encode()

    def __str__(self) -> str:
        return str(self.short)
