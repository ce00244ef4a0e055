"""A fingerprint of the workflow code beside the recorded histories, so that no change of it goes unseen."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

CODE = Path(__file__).parents[2] / "workflows"
FILE = Path(__file__).parent / "fingerprints.json"


def fingerprints() -> dict[str, str]:
    """The fingerprint of each workflow module."""
    return {path.name: fingerprint(path.read_text()) for path in sorted(CODE.glob("*.py"))}


def fingerprint(code: str) -> str:
    """SHA-256 over the code's syntax tree, the same on every Python that can parse it.

    Comments, docstrings and layout do not count.
    """
    tree = ast.parse(code)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body.pop(0)
    return hashlib.sha256(_dump(tree).encode()).hexdigest()


def _dump(node: object) -> str:
    """A node as text. `ast.dump` shows empty fields or not, and has new ones, by the version of Python."""
    if isinstance(node, list):
        return f"[{', '.join(_dump(each) for each in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in sorted(ast.iter_fields(node)) if value is not None and value != [])
    return f"{type(node).__name__}({', '.join(f'{name}={_dump(value)}' for name, value in fields)})"


def write_fingerprints() -> None:
    FILE.write_text(json.dumps(fingerprints(), indent=1) + "\n")


if __name__ == "__main__":
    write_fingerprints()
