"""The two kinds of model: messages between our own parts, and arguments that a model or a user wrote."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A message or state of ours. Unknown fields are ignored, so that a newer part can talk to an older one."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)


class Strict(BaseModel):
    """Something written by a model or a user: unknown fields and wrong types are errors, never guesses."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
