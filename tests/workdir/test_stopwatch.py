import time

import jax
import jax.numpy as jnp
import pytest

from cnn_jax.workdir.stopwatch import Stopwatch


def test_compilation_is_separate():
    function, watch = jax.jit(lambda x: jnp.sin(x @ x).sum()), Stopwatch()
    x = jnp.ones((3, 3))
    begin = time.perf_counter()
    with watch.measure("train"):
        function(x).block_until_ready()
        time.sleep(0.05)
    whole = time.perf_counter() - begin
    assert watch.seconds["compile"] > 0
    assert 0.05 <= watch.seconds["train"] < whole
    assert sum(watch.seconds.values()) == pytest.approx(whole, abs=0.02)
    compiled = watch.seconds["compile"]
    with watch.measure("test"):
        function(x).block_until_ready()
    jax.jit(lambda x: x + 3.0)(x)  # outside: not measured
    assert watch.seconds["compile"] == compiled


def test_nested_compilations_count_once(monkeypatch):
    """Inner functions are traced within outer ones, whose report covers them."""
    now, watch = 100.0, Stopwatch()
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    with watch.measure("train"):
        for now, duration in [(101.0, 1.0), (103.0, 1.0), (104.0, 3.5), (106.0, 1.0)]:  # noqa: B007
            watch._listen("/jax/core/compile/some_duration", duration)
        watch._listen("/jax/compilation_cache/compile_time_saved_sec", 50.0)
        now = 110.0
    assert watch.seconds == {"compile": pytest.approx(5.0), "train": pytest.approx(5.0)}
