"""Processes that share a store of prefixes and are killed at any moment: never a wrong token."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from strata import LLM, SamplingParams

PROMPTS = [[40 + (i * i + k) % 4000 for i in range(150 + 64 * k)] for k in range(3)]
PARAMS = SamplingParams(max_tokens=4, logprobs=2, ignore_eos=True)

PROGRAM = """
import sys
from test_killed_processes import PARAMS, PROMPTS
from strata import LLM
with LLM(sys.argv[1], threads=1, context=512, kv_store=sys.argv[2], kv_store_bytes=3 << 20) as llm:
    print("ready", flush=True)
    while True:
        for prompt in PROMPTS:
            llm.generate(prompt, PARAMS)
"""


@pytest.mark.slow
def test_kill_at_random_moments_a_hundred_times(smollm2_path: Path, tmp_path: Path) -> None:
    with LLM(smollm2_path, threads=2, context=512) as llm:
        right = [llm.generate(prompt, PARAMS).logprobs for prompt in PROMPTS]
    random = np.random.default_rng(0)
    command = [sys.executable, "-c", PROGRAM, str(smollm2_path), str(tmp_path)]
    paths = os.pathsep.join(sys.path)
    found = 0
    for number in range(100):
        environment = {**os.environ, "PYTHONPATH": paths}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(float(random.uniform(0, 1.0)))
            process.kill()
        if number % 5 == 4:
            with LLM(smollm2_path, threads=2, context=512, kv_store=tmp_path) as llm:
                outputs = [llm.generate(prompt, PARAMS) for prompt in PROMPTS]
            assert [output.logprobs for output in outputs] == right
            found += sum(output.cached_tokens for output in outputs)
    assert found > 0
