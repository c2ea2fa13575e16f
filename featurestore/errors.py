"""All errors that featurestore raises, in one tree.

::

    FeatureStoreError                  caught by the command line: one line, exit status 1
    ├── InputError (ValueError)        invalid input by the caller
    │   ├── DatasetError               a folder, table or array that is not a data set
    │   ├── ImageError                 bytes that do not decode to an image
    │   ├── BackboneError              an unknown model, or weights that do not fit
    │   │   ├── UnknownLayerError      no such layer in the backbone
    │   │   └── OutOfMemoryError       a batch that needs more memory than the device has
    │   ├── HeadError                  an unknown head or parameter, or labels it cannot learn from
    │   └── SpecError                  a pipeline file with a mistake in it
    ├── StoreError                     the store does not have what is needed
    │   ├── StoreFormatError           not a store, or one of a newer format
    │   ├── NotFoundError (LookupError)    no such features, data set or head
    │   ├── IncompleteFeaturesError    some blocks were never extracted
    │   └── DamagedError               stored bytes that fail their checksum
    ├── UnreachableError               a server of images, tables or a store that does not answer
    ├── ExtractionError                features could not be computed
    │   ├── SourceChangedError         an image no longer has the bytes that were scanned
    │   └── ActivationError            NaN, a value that the stored type cannot hold, or a wrong one
    └── PromotionError                 a head that cannot be fused
        └── ParityError                the fused model disagrees with the cached head

A message says in one line what was found, what was expected, and how to fix it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class FeatureStoreError(Exception):
    """Base of every error raised on purpose by featurestore.

    Parameters
    ----------
    found : str
        What is wrong, such as ``"the label column 'x' is not in the table"``.
    expected : str
        What would be right, without the word: ``"one of 'species' and 'name'"``.
    remedy : str
        The command or call that solves it, as an imperative: ``"run `featurestore scan …`"``.

    Examples
    --------
    >>> print(FeatureStoreError("0 layers", "at least one", "add --layer block4_pool"))
    0 layers; expected at least one; add --layer block4_pool
    """

    def __init__(self, found: str = "", expected: str = "", remedy: str = "") -> None:
        super().__init__(found)
        self.found, self.expected, self.remedy = found, expected, remedy

    def __str__(self) -> str:
        expected = f"expected {self.expected}" if self.expected else ""
        return "; ".join(filter(None, (self.found, expected, self.remedy)))


class FeatureStoreWarning(UserWarning):
    """A warning by featurestore."""


class InputError(FeatureStoreError, ValueError):
    """Invalid input by the caller."""


class DatasetError(InputError):
    """A folder, table or array that is not a data set."""


class ImageError(InputError):
    """Bytes that do not decode to an image; the message is the reason."""


class BackboneError(InputError):
    """An unknown model, or weights or preprocessing that do not fit it."""


class UnknownLayerError(BackboneError):
    """No such layer in the backbone."""


class OutOfMemoryError(BackboneError):
    """A batch that needs more memory than the device has."""


class HeadError(InputError):
    """An unknown head or parameter, or labels that it cannot learn from."""


class SpecError(InputError):
    """A pipeline file with a mistake in it."""


class StoreError(FeatureStoreError):
    """The store does not have what is needed."""


class StoreFormatError(StoreError):
    """Not a store, or a store of a newer format."""


class NotFoundError(StoreError, LookupError):
    """No such features, data set or head in the store."""


class IncompleteFeaturesError(StoreError):
    """Some blocks of a feature array were never extracted."""


class DamagedError(StoreError):
    """Stored bytes that fail their checksum or cannot be parsed."""


class UnreachableError(FeatureStoreError):
    """A server that does not answer, or denies access to all images or tables.

    It is not a StoreError, because it says nothing about what is stored.
    """


class ExtractionError(FeatureStoreError):
    """Features could not be computed, or an image could not be used."""


class SourceChangedError(ExtractionError):
    """An image no longer has the bytes that were scanned."""


class ActivationError(ExtractionError):
    """An activation that is not finite, too large for the stored type, or computed wrongly."""


class PromotionError(FeatureStoreError):
    """A head that cannot be fused onto its backbone."""


class ParityError(PromotionError):
    """The fused model disagrees with the head that was measured on the cache."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a phrase that offers the names nearest to ``name``.

    Parameters
    ----------
    name : str
        A name that does not exist.
    names : iterable of str
        Those that do.

    Returns
    -------
    str
        ``"did you mean 'block4_pool'?"``, or the first names if none is near.
    """
    names = list(names)
    # Keys and ids are long: a name may also be near to how one begins.
    folded = {candidate[: len(name)].casefold(): candidate for candidate in reversed(names)}
    folded |= {candidate.casefold(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.casefold(), folded, cutoff=0.5)
    if close:
        offered = dict.fromkeys(repr(folded[text]) for text in close)
        return "did you mean " + " or ".join(offered) + "?"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"known: {shown or 'none'}"


def received(value: object) -> str:
    """Return a phrase that shows a value of a wrong type.

    Examples
    --------
    >>> received(3), received([1, 2])
    ('3 (int)', '[1, 2] (list)')
    """
    kind = type(value)
    shown = " ".join(repr(value).split()) if kind.__module__ == "builtins" else ""
    if not shown or len(shown) > 40 or " at 0x" in shown:
        where = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
        return f"of type {where}{kind.__qualname__}"
    return f"{shown} ({kind.__name__})" if value is not None else shown


def path_text(
    value: object, what: str, expected: str, error: type[FeatureStoreError] = InputError
) -> str:
    """Return a path or name as text; raise ``error`` if the value is neither.

    Examples
    --------
    >>> path_text(3, "the model file", "the path of a .keras file")
    Traceback (most recent call last):
    featurestore.errors.InputError: the model file is 3 (int); expected the path of a .keras file
    """
    if not isinstance(value, str | os.PathLike):
        raise error(f"{what} is {received(value)}", expected)
    return os.fspath(value)


def refuse_newer(version: int, newest: int, where: str) -> None:
    """Raise StoreFormatError for a format that only a later featurestore can read."""
    if version > newest:
        raise StoreFormatError(
            f"{where} has format {version}",
            f"at most {newest}, which this featurestore reads",
            "run `git pull && pip install .` in its clone",
        )


def one_line(error: BaseException, length: int = 200) -> str:
    """Return the beginning of another library's error message, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"
