"""Settings: frozen options that are checked by pydantic and shared by Python, pipelines and CLI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from featurestore.errors import InputError, nearest


def first_mistake(error: ValidationError) -> str:
    """Return the first invalid field of a document, and the reason."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:80]!r}: {first['msg']}"


class Settings(BaseModel):
    """Base of the frozen option objects. Unknown options are errors.

    The string below a field says what it is; the command line shows it as help.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Validate keyword arguments.

        Raises
        ------
        InputError
            For the first option that is unknown or out of range.

        Examples
        --------
        >>> class Training(Settings):
        ...     epochs: int = 3
        >>> Training.of({"epoch": 4})
        Traceback (most recent call last):
        featurestore.errors.InputError: no option 'epoch'; did you mean 'epochs'?
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name, message = ".".join(map(str, first["loc"])), first["msg"]
            if first["type"] == "extra_forbidden":
                raise InputError(f"no option {name!r}; {nearest(name, cls.model_fields)}") from None
            message = message.removeprefix("Value error, ")
            if not name:  # a rule about several options
                raise InputError(message) from None
            message = f"{message[0].lower()}{message[1:]}"
            raise InputError(f"{name} is {first['input']!r}: {message}") from None
