"""The wheel, in an environment of its own: all modules are in it, and import with the declared dependencies alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_AT_RUN_TIME = ["transformers", "torchaudio", "librosa", "pytest", "hypothesis", "scipy", "psutil"]

IMPORT_ALL = """
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} must not be needed at run time", name=name)

names, blocked = json.load(sys.stdin)
sys.meta_path.insert(0, Blocked())
print(json.dumps({name: importlib.import_module(name).__file__ for name in names}))
"""


@dataclass(frozen=True)
class Installed:
    wheel: Path
    folder: Path  # of the environment
    site: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def files(self) -> list[str]:
        return zipfile.ZipFile(self.wheel).namelist()

    @property
    def modules(self) -> list[str]:
        names = [name.removesuffix(".py").replace("/", ".") for name in self.files if name.endswith(".py")]
        return sorted(name.removesuffix(".__init__") for name in names)


def packages() -> dict[str, str]:
    """Package -> folder, as pyproject.toml maps them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    return settings["package-dir"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    """The wheel of a copy of the sources (building in the tree would mix in what old builds left there), installed.

    The running environment's packages are visible through a .pth file. What editable installs add to them is not: a
    .pth file inside a folder that a .pth file added is not read.
    """
    base = tmp_path_factory.mktemp("packaging")
    source = base / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in packages().values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", base, source)
    (wheel,) = base.glob("*.whl")
    venv.create(base / "venv", with_pip=False)
    python = base / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    (site,) = (base / "venv" / "lib").glob("python*/site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(others) + "\n")
    return Installed(wheel, base / "venv", site)


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_module_is_in_the_wheel_and_nothing_else(installed):
    """A sub-package that pyproject.toml forgets would be missing, a stray folder left over."""
    sources = {
        f"octavo/{path.relative_to(ROOT).as_posix()}"
        for folder in packages().values()
        for path in (ROOT / folder).rglob("*.py")
    }
    inside = {name for name in installed.files if ".dist-info/" not in name}
    assert {name for name in inside if name.endswith(".py")} == sources
    assert {Path(name).name for name in inside - sources} == {"py.typed"}
    assert "octavo/__init__.py" not in inside  # a namespace


def test_types_and_licence_are_inside(installed):
    typed = {name for name in installed.files if name.endswith("py.typed")}
    assert {f"octavo/{folder}/py.typed" for folder in ("runtime", "kernels", "quant", "bench", "tools")} <= typed
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in installed.files)


def test_every_module_imports_with_the_declared_dependencies_alone(installed, tmp_path):
    wanted = json.dumps([installed.modules, NOT_AT_RUN_TIME])
    done = run(installed.bin / "python", "-I", "-c", IMPORT_ALL, input=wanted, cwd=tmp_path)
    places = json.loads(done.stdout.splitlines()[-1])
    assert len(places) > 40
    foreign = {name: place for name, place in places.items() if not Path(place).is_relative_to(installed.site)}
    assert not foreign, "octavo came from somewhere else than the wheel"


def test_the_block_blocks(installed, tmp_path):
    """The test above would see an import of transformers."""
    command = [installed.bin / "python", "-I", "-c", IMPORT_ALL]
    wanted = json.dumps([["transformers"], NOT_AT_RUN_TIME])
    done = subprocess.run(command, input=wanted, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "must not be needed at run time" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["say", "--help"]], ids=" ".join)
def test_the_command_works_from_there(installed, tmp_path, arguments):
    done = run(installed.bin / "octavo", *arguments, cwd=tmp_path)
    assert done.stdout.startswith("octavo " if "--version" in arguments else "usage: octavo")
