"""Which patterns in the syntax of gitignore can be understood: those that are accepted can be matched as well.

Workflows check arguments again while they replay: so this asks no library, and what it once accepted it accepts.
"""

from __future__ import annotations


def fault_of(pattern: str) -> str | None:
    """Why nothing can be told from a pattern; None when something can. Blank lines and comments are fine."""
    text = pattern if pattern.endswith("\\ ") else pattern.rstrip()
    if not text or text.startswith("#"):
        return None
    text = text.removeprefix("!")
    if not text.strip("/"):
        return "names nothing"
    for part in text.split("/"):
        fault = _fault_of_part(part)
        if fault is not None:
            return fault
    return None


def _fault_of_part(part: str) -> str | None:
    at = 0
    while at < len(part):
        if part[at] == "\\":
            if at + 1 == len(part):
                return "has a backslash with nothing behind it"
            at += 2
        elif part[at] == "[":
            begin = at + 2 if part[at + 1 : at + 2] in {"!", "^"} else at + 1
            end = part.find("]", begin + 1)  # one in front belongs to the set
            if end < 0:
                return "has a [ without its ]"
            if not _is_set(part[begin:end]):
                return "has a set of characters that ends before it begins"
            at = end + 1
        else:
            at += 1
    return None


def _is_set(members: str) -> bool:
    at = 0
    while at < len(members):
        is_range = members[at + 1 : at + 2] == "-" and at + 2 < len(members)
        if is_range and members[at] > members[at + 2]:
            return False
        at += 3 if is_range else 1
    return True
