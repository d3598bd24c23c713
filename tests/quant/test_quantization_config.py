"""config.json of what is written, as transformers understands it."""

from __future__ import annotations

import json

import pytest

from octavo.quant import quantize

WANTED = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "format": "gemm"},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@pytest.mark.parametrize("format", WANTED)
def test_transformers_understands_the_configuration(tiny_dir, tmp_path, format):
    auto = pytest.importorskip("transformers.quantizers.auto")
    options = {"calib": "none", "group_size": 64} if format == "awq" else {}
    quantize(tiny_dir, tmp_path / format, format=format, gate=False, **options)
    written = json.loads((tmp_path / format / "config.json").read_text())
    read = auto.AutoQuantizationConfig.from_dict(written["quantization_config"]).to_dict()
    assert WANTED[format].items() <= {name: getattr(value, "value", value) for name, value in read.items()}.items()
    source = json.loads((tiny_dir / "config.json").read_text())
    assert {name: value for name, value in written.items() if name in source} == source
