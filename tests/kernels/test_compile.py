"""Every kernel compiles for GPUs that are not here, and keeps what its case promises: no spills, wide loads, mma."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from octavo.tools.kernel_cases import Case
from octavo.tools.kernel_rows import Row, broken, read

COMPILED = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(autouse=True, scope="module")
def triton():
    pytest.importorskip("triton", reason="needs Triton, which this PyTorch comes without")


@pytest.mark.parametrize("arguments", ["--capability 90 --level 2", "--capability 80,89,100,120 --level 1"])
def test_all_kernels_keep_their_promises(arguments, capsys):
    command = [sys.executable, "-m", "octavo.tools.kernel_report", *arguments.split()]
    done = subprocess.run(command, env=COMPILED, capture_output=True, text=True)
    if "90" in arguments:
        with capsys.disabled():  # registers and shared memory, for whoever runs the tests
            print("\n" + done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


BAD_KERNEL = """
import sys
import torch
from octavo.kernels.launch import jit, tl
from octavo.tools import kernel_report
from octavo.tools.kernel_cases import Case

@jit
def _kernel(x_ptr, y_ptr, stride_xn, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(y_ptr + n, tl.load(x_ptr + n * stride_xn))

def op(stride):
    x, y = (torch.empty(4096, dtype=torch.bfloat16) for _ in "xy")
    _kernel[(1,)](x[::stride], y, stride, N=1024, num_warps=4, num_stages=1)

rows, found = kernel_report.report([Case("narrow", op, (3,), mma=True), Case("wide", op, (1,))], [90])
print([row.widest for row in rows], *found, sep="\\n")
"""


def test_a_kernel_that_loads_narrowly_is_found(tmp_path):
    """The strides of the call decide: 3 gives loads of single elements, 1 gives 16 bytes."""
    (tmp_path / "narrow.py").write_text(BAD_KERNEL)
    command = [sys.executable, str(tmp_path / "narrow.py")]
    done = subprocess.run(command, env=COMPILED, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[2, 16]",
        "__main__._kernel (narrow, 90): its widest global load is 2 bytes",
        "__main__._kernel (narrow, 90): no matrix instruction",
    ]


GOOD = Row("op._kernel", "op N=1", 90, 1, 4, 3, 64, 0, 0, 1024, {16: 4, 4: 1}, 2, "HGMMA")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({}, None),
        ({"spill_stores": 2, "spill_loads": 3}, "spills, 2 stores and 3 loads"),
        ({"loads": {8: 4}}, "widest global load is 8 bytes"),
        ({"loads": {}}, "widest global load is 0 bytes"),
        ({"matrix": ""}, "no matrix instruction"),
        ({"shared": 232449}, "232449 bytes of shared memory; the device gives a program 227 KiB"),
    ],
)
def test_each_broken_promise_is_named(change, sentence):
    found = broken(Case("op N=1", print, mma=True), [replace(GOOD, **change)])
    assert len(found) == (sentence is not None) and (not found or sentence in found[0]), found


def test_a_cold_kernel_promises_only_to_start():
    cold = Case("op N=1", print, hot=False)
    assert broken(cold, [replace(GOOD, spill_loads=1, loads={2: 1}, matrix="")]) == []
    assert broken(cold, []) == ["op N=1: nothing was launched"]


def test_reading_machine_code():
    """Lines as cuobjdump prints them; LTC128B is how much the cache fetches, not a width."""
    text = """
 Function _kernel:
  REG:62 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:584
        /*0220*/              @!P2 LDG.E.128 R20, desc[UR10][R2.64] ;
        /*0230*/              LDG.E.U16 R12, desc[UR10][R2.64+0x800] ;
        /*0240*/              LDGSTS.E.BYPASS.LTC128B.128 [R7], desc[UR10][R2.64], P0 ;
        /*0250*/              LDG.E.CONSTANT R4, desc[UR10][R2.64+0x1800] ;
        /*0260*/              @P1 LDG.E.64 R4, desc[UR10][R2.64] ;
        /*0270*/              STL [R1+0x4], R0 ;
        /*0280*/              LDL.64 R2, [R1] ;
        /*0290*/              HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*02a0*/              STG.E.128 desc[UR10][R2.64], R4 ;
"""
    assert read(text) == {
        "registers": 62,
        "spill_stores": 1,
        "spill_loads": 1,
        "loads": {16: 2, 8: 1, 4: 1, 2: 1},
        "copies": 1,
        "matrix": "HGMMA",
    }
