"""Two models in a control group of their budget, which holds one and a half of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cgroups import why_not

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

import two_models

REASON = why_not()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_two_models_by_turns(smollm2_path: Path, tmp_path: Path) -> None:
    models = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for path in models:
        shutil.copyfile(smollm2_path, path)
    options = ["--context", "1024", "--parallel", "2", "--threads", "2"]
    found = two_models.run(models, 20.0, 3, options)
    assert found["requests"] >= 6
    assert (found["errors"], found["different"], found["kills"]) == ([], [], 0)
    assert found["server_ended"] is None
    assert found["cgroup_peak"] <= found["budget"]
    assert sum(found["shares_at_the_end"].values()) <= found["budget"]
