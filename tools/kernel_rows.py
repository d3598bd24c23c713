"""One compiled kernel in the compile report: what is read off its machine code, and what it had promised."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .kernel_cases import Case

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}  # KiB that one program may take

COLUMNS = tuple("kernel case cap programs warps stages regs spills shared loads copies matrix".split())

_MATRIX = re.compile(r"\b(?:[HDIQO]G?MMA|UTC\w*MMA)\b")  # mma.sync, wgmma, tcgen05
_LOAD = re.compile(r"\b(LDG|LDGSTS|UTMALDG|UBLKCP)\b((?:\.\w+)*)")
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # bytes; no mark: 4


@dataclass(frozen=True)
class Row:
    """One launch of one case, compiled for one capability."""

    kernel: str
    case: str
    capability: int
    programs: int
    warps: int
    stages: int
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int  # bytes per program
    loads: dict[int, int]  # from global memory: bytes per thread and instruction -> instructions; bulk copies are 16
    copies: int  # the loads that go to shared memory with nobody waiting
    matrix: str  # the kind of matrix instruction, or ""

    @property
    def widest(self) -> int:
        return max(self.loads, default=0)


def read(text: str) -> dict[str, Any]:
    """The fields of a Row that stand in the disassembly and the resource usage of a binary."""
    registers = re.search(r"\bREG:(\d+)", text)
    assert registers, text[:500]
    found = _LOAD.findall(text)
    loads = Counter(_width(name, marks) for name, marks in found)
    return {
        "registers": int(registers[1]),
        "spill_stores": len(re.findall(r"\bSTL\b", text)),
        "spill_loads": len(re.findall(r"\bLDL\b", text)),
        "loads": dict(sorted(loads.items(), reverse=True)),
        "copies": sum(name != "LDG" for name, _ in found),
        "matrix": "+".join(sorted(set(_MATRIX.findall(text)))),
    }


def broken(case: Case, rows: list[Row]) -> list[str]:
    """What the case promises and the binaries for one capability do not keep, a sentence each."""
    found = [] if rows else [f"{case.name}: nothing was launched"]
    for row in rows:
        name, limit = f"{row.kernel} ({row.case}, {row.capability})", SHARED[row.capability]
        if row.shared > limit * 1024:
            found.append(f"{name}: {row.shared} bytes of shared memory; the device gives a program {limit} KiB")
        if case.hot and row.spill_stores + row.spill_loads:
            found.append(f"{name}: spills, {row.spill_stores} stores and {row.spill_loads} loads")
        if case.hot and case.wide and row.widest < 16:
            found.append(f"{name}: its widest global load is {row.widest} bytes")
    if rows and case.mma and not any(row.matrix for row in rows):
        found.append(f"{rows[0].kernel} ({case.name}, {rows[0].capability}): no matrix instruction")
    return found


def table(rows: list[Row]) -> str:
    """Aligned columns; `loads`: bytes x instructions."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in rows:
        loads = " ".join(f"{width}x{count}" for width, count in row.loads.items())
        spills, shared = f"{row.spill_stores}/{row.spill_loads}", f"{row.shared:,}"
        launched = row.capability, row.programs, row.warps, row.stages, row.registers
        lines.append((row.kernel, row.case, *map(str, launched), spills, shared, loads, str(row.copies), row.matrix))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _width(name: str, marks: str) -> int:
    """Bytes per thread of a load, from the marks behind its name: LDG.E.128.CONSTANT is 16."""
    if name in ("UTMALDG", "UBLKCP"):
        return 16
    return next((_WIDTHS[mark] for mark in marks.split(".") if mark in _WIDTHS), 4)
