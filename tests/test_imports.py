"""The house rules that imports must keep; each rule is shown a slip as well."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {  # folder -> the folders it may import; quant has two floors, the formats below the runtime, the rest above
    "kernels": {"kernels"},
    "quant/formats": {"quant.formats"},
    "quant": {"quant", "runtime", "kernels"},
    "runtime": {"runtime", "kernels", "quant.formats"},
    "bench": {"bench", "tools", "runtime", "kernels", "quant"},
    "tools": {"tools", "bench", "runtime", "kernels", "quant"},
}
UPSTREAM = {"transformers", "torchaudio", "librosa"}
FILES = {"io", "json", "mmap", "os", "pathlib", "shutil", "tempfile", "safetensors", "soundfile", "tokenizers"}
OWN_FILES = {f"octavo.runtime.{name}" for name in ("tokenizer", "prompt", "text", "files", "audio", "voice", "hub")}


def violations(path: str, source: str) -> list[str]:
    """What the file at `path` (relative to the root, with /) must not do and does."""
    tree, folder = ast.parse(source, path), path.split("/")[0]
    allowed = FOLDERS["quant/formats" if path.startswith("quant/formats/") else folder]
    imported = list(imports(path, tree))
    tops = {name.split(".")[0] for name in imported}
    found = []
    for name in imported:
        inside = name.removeprefix("octavo.")
        if name.startswith("octavo.") and not any(f"{inside}.".startswith(f"{other}.") for other in allowed):
            found.append(f"{path} imports {name}")
    if folder != "bench":
        found += [f"{path} imports {name}" for name in tops & UPSTREAM]
    if folder == "runtime":
        found += [f"{path} imports triton" for name in tops & {"triton"}]
    if path in ("runtime/scheduler.py", "runtime/kv_cache.py"):
        found += [f"{path} imports {name}" for name in tops & {"torch"}]
    if path.startswith(("runtime/models/", "runtime/layers/")):
        found += [f"{path} imports {name}" for name in imported if name in OWN_FILES or name.split(".")[0] in FILES]
        found += [f"{path} opens a file" for call in calls(ast.walk(tree)) if call == "open"]
    if path in ("runtime/engine.py", "runtime/runner.py", "runtime/graph.py"):
        concrete = re.compile(r"octavo\.runtime\.models\.(?!Model$|load_model$|CODEC_PREFIX$)")
        found += [f"{path} imports {name}" for name in imported if concrete.match(name)]
    return found + [f"{path} touches CUDA at import: {call}" for call in cuda_calls(at_import(tree))]


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """Absolute names of all that is imported, wherever in the file: `from a import b` is a.b."""
    package = ".".join(["octavo", *Path(path).parent.parts])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if dotted(node.func) in ("importlib.import_module", "import_module", "__import__"):
                yield str(node.args[0].value)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no bodies of functions, no `if __name__ == "__main__"`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "__name__" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            outside = [*child.decorator_list, *child.args.defaults, *filter(None, child.args.kw_defaults)]
            for part in outside:
                yield part
                yield from at_import(part)
            continue
        yield child
        yield from at_import(child)


def calls(nodes: Iterator[ast.AST]) -> Iterator[str]:
    yield from (dotted(node.func) for node in nodes if isinstance(node, ast.Call))


def cuda_calls(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name, device = dotted(node.func), [word.value for word in node.keywords if word.arg == "device"]
        on_cuda = any(isinstance(value, ast.Constant) and str(value.value).startswith("cuda") for value in device)
        if "cuda" in name.split(".") or on_cuda:
            yield name


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def files() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_there_is_something_to_walk():
    assert {"runtime/engine.py", "kernels/rope.py", "tools/cli.py", "bench/measure.py"} <= set(files())


@pytest.mark.parametrize("path", files())
def test_house_rules(path):
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path, slip",
    [
        ("kernels/rope.py", "from octavo.runtime.config import ModelConfig"),
        ("kernels/rope.py", "import octavo.quant"),
        ("kernels/rope.py", "def f():\n    from octavo.quant import pack"),
        ("kernels/rope.py", "from ..runtime import config"),
        ("quant/formats/awq.py", "from octavo.kernels.rope import rope"),
        ("quant/formats/awq.py", "from ..awq import search"),
        ("quant/formats/awq.py", "import octavo.runtime"),
        ("quant/awq.py", "from octavo.bench.measure import Timing"),
        ("runtime/checkpoint.py", "from octavo.quant.awq import search"),
        ("runtime/checkpoint.py", "from octavo.quant import quantize"),
        ("runtime/engine.py", "from octavo.bench.measure import Timing"),
        ("runtime/codec/codec.py", "from ...tools import say"),
        ("runtime/engine.py", "from octavo import tools"),
        ("runtime/engine.py", "import importlib\nimportlib.import_module('octavo.tools.say')"),
        ("runtime/scheduler.py", "import torch"),
        ("runtime/kv_cache.py", "def f():\n    import torch.nn as nn"),
        ("runtime/models/qwen3.py", "from ..tokenizer import Tokenizer"),
        ("runtime/models/qwen3.py", "from .. import tokenizer"),
        ("runtime/models/qwen3.py", "from safetensors.torch import load_file"),
        ("runtime/layers/linear.py", "from pathlib import Path"),
        ("runtime/layers/linear.py", "text = open('x').read()"),
        ("runtime/engine.py", "from .models.higgs_v3 import HiggsV3"),
        ("runtime/runner.py", "from .models import qwen3"),
        ("runtime/layers/linear.py", "import triton.language as tl"),
        ("runtime/engine.py", "import transformers"),
        ("tools/say.py", "def f():\n    from transformers import Qwen3Model"),
        ("runtime/audio.py", "import torchaudio"),
        ("kernels/rope.py", "import librosa"),
        ("runtime/runner.py", "import torch\nHERE = torch.cuda.is_available()"),
        ("runtime/runner.py", "import torch\nclass A:\n    x = torch.zeros(1, device='cuda')"),
        ("kernels/rope.py", "import torch\ndef f(n=torch.cuda.device_count()): ..."),
        ("bench/measure.py", "import torch\nx = torch.zeros(1).cuda()"),
    ],
)
def test_a_slip_is_seen(path, slip):
    assert violations(path, slip)


@pytest.mark.parametrize(
    "path, fine",
    [
        ("runtime/runner.py", "import torch\ndef f():\n    return torch.cuda.is_available()"),
        ("tools/doctor.py", "import torch\nif __name__ == '__main__':\n    torch.cuda.init()"),
        ("runtime/engine.py", "from .models import CODEC_PREFIX, Model, load_model"),
        ("runtime/models/higgs_v3.py", "from octavo.kernels.rope import rope\nfrom ..checkpoint import Checkpoint"),
        ("bench/baseline.py", "def f():\n    import transformers"),
        ("runtime/stored.py", "from octavo.quant.formats import awq\nfrom octavo.quant.formats.grouped import Grouped"),
        ("quant/awq.py", "from octavo.runtime.checkpoint import Checkpoint\nfrom .formats import awq"),
    ],
)
def test_what_is_allowed_passes(path, fine):
    assert violations(path, fine) == []


def test_what_is_imported_is_declared():
    """Whoever installs octavo gets what its modules import; the rest of the world is not needed at run time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(need for name, needs in extras.items() if name != "test" for need in needs)]
    declared = {re.split(r"[^\w-]", need)[0] for need in wanted} | {"octavo", "triton"}  # which comes with CUDA's torch
    for path in files():
        if path.startswith("bench/"):
            continue  # measures against the test extra's transformers
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        foreign = {name.split(".")[0] for name in imports(path, tree)} - sys.stdlib_module_names
        assert foreign <= declared, (path, foreign - declared)
