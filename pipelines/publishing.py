"""Hands what a run recorded to a branch of git, where others find it: commits it and pushes it, never by force."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


class PublishError(Exception):
    """A commit or a push didn't come to pass."""


def check_branch(branch: str) -> None:
    """See that results can be committed on a branch: it is the one that is checked out.

    Raises:
        ValueError: it isn't, or this is no repository of git.
    """
    status, found = _git("symbolic-ref", "--short", "HEAD")
    if status or found != branch:
        raise ValueError(
            f"--publish: expected the branch {branch} to be checked out, found {found or 'no branch'}; run "
            f"`git switch {branch}`, or `git switch --create {branch}`, in the workspace that runs at night"
        )


def publish(branch: str, paths: Sequence[str], message: str) -> str:
    """Commit some files, and nothing else that changed, and push the branch.

    Args:
        branch: the one that is checked out.
        paths: files that the run recorded its results in; those that aren't there are left out.
        message: of the commit.

    Returns:
        What was done, in words.

    Raises:
        PublishError: git refuses; says what it said.
    """
    there = [path for path in paths if Path(path).is_file()]
    _done("add", "--force", "--", *there)
    if _git("diff", "--quiet", "HEAD", "--", *there)[0]:
        _done("commit", "--quiet", "--message", message, "--only", "--", *there)
    commit = _done("rev-parse", "--short", "HEAD")
    _, configured = _git("config", f"branch.{branch}.remote")
    remote = configured or "origin"
    status, said = _git("push", "--quiet", remote, f"HEAD:refs/heads/{branch}")
    if status:
        raise PublishError(
            f"dvc.lock is committed here as {commit}, but `git push {remote} {branch}` failed: {said}; nothing is "
            f"pushed by force: run `git pull {remote} {branch}` and the next run pushes again"
        )
    return f"{commit} is on {branch} of {remote}"


def _done(*words: str) -> str:
    status, said = _git(*words)
    if status:
        raise PublishError(f"`git {' '.join(words)}` failed: {said}")
    return said


def _git(*words: str) -> tuple[int, str]:
    """Exit status of git, and what it said in one line; it never waits for somebody to type."""
    environment = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
        "GIT_EDITOR": "true",
        **os.environ,
    }
    done = subprocess.run(
        ["git", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split())
