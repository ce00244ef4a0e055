"""Types of arguments that several tools share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sandhold.contracts.names import CALL_ID_PATTERN, ID_PATTERN


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def _path(value: str) -> str:
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode") from error
    if len(encoded) > 4095:
        raise ValueError("must be at most 4095 bytes long")
    return _without_nul(value)


SandboxId = Annotated[str, Field(pattern=ID_PATTERN, max_length=63)]
CallId = Annotated[str, Field(pattern=CALL_ID_PATTERN, max_length=128)]
SandboxPath = Annotated[str, Field(min_length=1, max_length=4095), AfterValidator(_path)]
Text = Annotated[str, AfterValidator(_without_nul)]
Size = Literal["small", "medium", "large"]
CommandStatus = Literal["completed", "running", "timed_out", "interrupted", "cancelled"]
