"""An engine's beginning and end: memory, forks, the end of the interpreter, and what a broken request may cost."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from octavo.runtime import CapacityError, CheckpointError, Engine, OctavoError, RequestError, SamplingParams, Voice
from octavo.runtime.kv_cache import PagePool
from octavo.runtime.memory import lazy_zeros
from octavo.runtime.script import Script
from octavo.runtime.tokenizer import build_byte_tokenizer
from octavo.tools.make_checkpoint import make_checkpoint

LONG = "The first sentence of a long text says this, and it takes its time to say it all. " * 9


def load(folder, **options) -> Engine:
    return Engine.load(folder, device="cpu", dtype="fp32", **options)


def test_a_reused_voice_never_waits_for_a_page_that_is_not_there():
    """A prompt that takes all pages, and a prefix that ends inside one: the copy would need one page more."""
    pool = PagePool(4, 16)
    first = pool.reserve(64, b"voice")
    pool.keep_prefix(b"voice", first.pages, 20)
    pool.release(first.pages)
    again = pool.reserve(64, b"voice")
    assert again is not None and again.reused_rows == 0 and b"voice" not in pool._prefixes


def test_the_same_in_an_engine(tiny_dir):
    with load(tiny_dir, kv_rows=128, max_context=128) as engine:
        voice = Voice(codes=np.zeros((20, 8), np.int16), codec=engine.codec.fingerprint)
        rows = 128 - engine.generate("Hi.", voice, max_rows=8, guard=False).usage.prompt_tokens
        for _ in range(2):
            assert engine.generate("Hi.", voice, max_rows=rows, guard=False).usage.rows <= rows


SPEAKS_AND_ENDS = """
import sys
from octavo.runtime import Engine
engine = Engine.load(sys.argv[1], device="cpu")
stream = engine.stream("Some words.", max_rows=2000, guard=False)
next(stream)
"""


def test_a_script_may_end_while_its_engine_speaks(tiny_dir):
    done = subprocess.run([sys.executable, "-c", SPEAKS_AND_ENDS, tiny_dir], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dropped_engine_gives_its_memory_back(tiny_dir):
    engine = load(tiny_dir)
    engine.generate("Hi.", max_rows=20)
    weights, worker = weakref.ref(engine.model), engine._driver._mailbox._thread
    del engine
    gc.collect()
    worker.join(5)
    gc.collect()
    assert not worker.is_alive() and weights() is None


def test_a_finished_request_is_freed_at_once(tiny_dir):
    with load(tiny_dir) as engine:
        stream = engine.stream("Hi.", max_rows=20)
        stream.result()
        request = weakref.ref(stream._request)
        engine.generate("Another.", max_rows=20)  # the worker has let go of the first
        gc.disable()
        try:
            del stream
            assert request() is None
        finally:
            gc.enable()


def test_two_readers_of_one_stream_both_come_to_its_end(tiny_dir):
    with load(tiny_dir) as engine:
        stream = engine.stream("Hi.", max_rows=60)
        got = []
        threads = [threading.Thread(target=lambda: got.append(stream.result()), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(got) == 3 and got[0] is got[1] is got[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_share_no_memory_and_get_a_sentence(tiny_dir):
    zeros = lazy_zeros((4,), torch.float32, torch.device("cpu"))
    with load(tiny_dir) as engine:
        engine.generate("Hi.", max_rows=10)
        child = os.fork()
        if child == 0:
            zeros.add_(1)
            try:
                engine.stream("Hi.")
            except OctavoError as error:
                os._exit(7 if "fork" in str(error) else 1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert zeros.sum() == 0


def test_an_engine_loaded_in_inference_mode_speaks(tiny_dir):
    with torch.inference_mode():
        engine = load(tiny_dir)
    with engine:
        assert engine.generate("Hi.", max_rows=40).usage.rows <= 40


def test_a_piece_that_fails_ends_its_own_request_only(tiny_dir, monkeypatch):
    with load(tiny_dir) as engine:
        monkeypatch.setattr(Script, "carried", lambda script, first: 1 / 0)
        broken = engine.stream(LONG, max_rows=30)
        neighbour = engine.stream("A neighbour.", max_rows=90, seed=1)
        with pytest.raises(ZeroDivisionError):
            broken.result()
        assert neighbour.result().usage.rows > 30


def test_a_long_text_that_would_not_fit_with_its_carried_voice_is_refused_at_once(tiny_dir):
    with load(tiny_dir, max_context=700) as engine:
        with pytest.raises(CapacityError, match="max_context"):
            engine.stream(LONG, max_rows=400, guard=False)
        assert engine.generate(LONG, max_rows=100).usage.rows > 100


def test_memory_that_is_not_to_be_had(tiny_dir):
    with pytest.raises(CapacityError, match="kv_rows"):
        load(tiny_dir, kv_rows=10**13)


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    folder = make_checkpoint(tmp_path / "large", size="tiny", vocab=1024)
    build_byte_tokenizer(2000).save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="do not belong together"):
        load(folder)


@pytest.mark.parametrize("field", ["seed", "top_k", "max_rows", "temperature"])
def test_numbers_beyond_all_bounds(field):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: -(10**400)})
