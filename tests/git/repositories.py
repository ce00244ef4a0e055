"""Repositories for tests, made with git itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Tests",
    "GIT_AUTHOR_EMAIL": "tests@example.com",
    "GIT_COMMITTER_NAME": "Tests",
    "GIT_COMMITTER_EMAIL": "tests@example.com",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


def git(folder: Path, *arguments: str) -> str:
    """Run git there; what it printed."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=_ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def new_repository(root: Path, name: str, *, large_bytes: int = 0, submodule: str | None = None) -> dict[str, str]:
    """A bare repository `owner/name` below `root`, and the commits in it by name.

    `main` has two commits, `first` is the tag of the one before, `feature/one` a branch with one more. With
    `large_bytes` a file holds as much that cannot be packed; `submodule` is the address of one.
    """
    work = root / "work" / name
    work.mkdir(parents=True)
    git(work, "init", "-q", "-b", "main")
    (work / "README").write_text(f"{name}\n")
    if large_bytes:
        (work / "large").write_bytes(os.urandom(large_bytes))
    git(work, "add", ".")
    git(work, "commit", "-qm", "first")
    git(work, "tag", "first")
    commits = {"first": git(work, "rev-parse", "HEAD")}
    (work / "README").write_text(f"{name} again\n")
    if submodule is not None:
        module = root / f"{submodule.removesuffix('.git').split('://')[-1].partition('/')[2]}.git"
        commit = git(module, "rev-parse", "main")
        (work / ".gitmodules").write_text(f'[submodule "part"]\n\tpath = part\n\turl = {submodule}\n')
        git(work, "update-index", "--add", "--cacheinfo", f"160000,{commit},part")
    git(work, "add", "README", *([".gitmodules"] if submodule is not None else []))
    git(work, "commit", "-qm", "second")
    commits["main"] = git(work, "rev-parse", "HEAD")
    git(work, "checkout", "-qb", "feature/one")
    git(work, "commit", "-q", "--allow-empty", "-m", "third")
    commits["feature/one"] = git(work, "rev-parse", "HEAD")
    git(work, "checkout", "-q", "main")
    bare = root / f"{name}.git"
    bare.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "-q", "--bare", str(work), str(bare))
    git(bare, "config", "http.receivepack", "true")
    return commits


def new_empty_repository(root: Path, name: str) -> None:
    bare = root / f"{name}.git"
    bare.mkdir(parents=True)
    git(bare, "init", "-q", "--bare", "-b", "main")
