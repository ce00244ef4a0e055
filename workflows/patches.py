"""What has changed since histories were written that must still replay: asked of `workflow.patched` where it matters.

Only in tasks and handlers of a workflow, never in queries and validators, and as late as can be, so that a run that
never comes that far notes nothing.
"""

from __future__ import annotations

from enum import StrEnum


class Patch(StrEnum):
    """The names of the changes; they are in histories and stay as they are."""

    UNSURE_COMMANDS = "unsure-commands"
    """A command that may have been started although its request was given up is put on record and followed."""
    COMMANDS_FROM_THEIR_CALL = "commands-from-their-call"
    """A command is known, and can be ended, from the admission of its call on."""
    TOLD_INTERRUPTIONS = "told-interruptions"
    """The outcome of a command that was interrupted holds what is stored of its output."""
    COMMAND_LIMIT = "command-limit"
    """A sandbox runs at most `COMMANDS_LIMIT` commands."""
    ENDED_BY_THE_STOP = "ended-by-the-stop"
    """A command that did not say how it ended before a stop is over once the stop has been made, not before."""
    STOPS_BY_FOLLOWER = "stops-by-follower"
    """A follower that finds the sandbox stopped interrupts what it follows, unless the sandbox was started since."""
    REFUSED_FOR_NOW = "refused-for-now"
    """A call that was refused for something that passes can come again under its id."""
    REPEATED_COMMANDS = "repeated-commands"
    """A call that the ledger has forgotten and whose command is on record is answered by the record."""
    FORGOTTEN_BY_END = "forgotten-by-end"
    """Of calls and commands that have ended, those are forgotten first that ended first, not those that began first."""
    BEGUN_ONCE = "begun-once"
    """A call that comes before the main coroutine has begun is not taken for one of the run before, and begun again."""
