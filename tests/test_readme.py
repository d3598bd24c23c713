"""What the README shows works: its Python runs, its commands are understood, what it names is there."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from octavo.tools.commands import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path.name for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), flags=re.M | re.S)


def python_blocks() -> list:
    return [pytest.param(block, id=f"{page} {n}") for page in PAGES for n, block in enumerate(blocks(page, "python"))]


def commands() -> list:
    """Command lines of octavo, continued lines joined."""
    lines = [
        line.strip().removeprefix("$ ")
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line.startswith("octavo ")]


def test_there_is_something_to_run():
    if "README.md" not in PAGES:
        pytest.skip("there is no README.md yet")
    assert blocks("README.md", "python") and commands()


@pytest.mark.parametrize("block", python_blocks())
def test_python_runs(block, tiny_dir, tmp_path, monkeypatch):
    """In an empty folder, with a tiny model at `checkpoints/tiny` and no voices."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "tiny").symlink_to(tiny_dir)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_VOICES", str(tmp_path / "voices"))
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    written = re.findall(r"\.save\(\"(.+?)\"\)", block)
    assert all((tmp_path / name).stat().st_size > 1000 for name in written)


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line):
    words = shlex.split(line, comments=True)
    words = words[: words.index("|")] if "|" in words else words
    assert build_parser().parse_args(words[1:]).command == words[1]


@pytest.mark.parametrize("page", PAGES)
def test_modules_folders_and_targets_that_are_named_exist(page):
    content = text(page)
    for module in re.findall(r"python -m (octavo[\w.]*)", content):
        assert find_spec(module), module
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for target in re.findall(r"^ {4}make (\w+)|`make (\w+)`", content, flags=re.M):
        assert "".join(target) in targets, target
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", content):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:runtime|kernels|quant|bench|tools|tests)/[\w./]*)`", content):
        assert (ROOT / path).exists(), path
