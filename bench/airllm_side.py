"""One measurement of AirLLM on the CPU, by the Python that it is installed in, as JSON.

`PEER_PYTHON bench/airllm_side.py DIRECTORY --shards FOLDER --prompt 16 --gen 4 --threads 2` gives
the seconds of each token, the first of which pays for the prompt. AirLLM's own copy of the weights,
a file for each layer, is written to FOLDER unless it is there; `--prepare` writes it and measures
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--gen", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()

    with contextlib.redirect_stdout(sys.stderr):
        import torch
        from airllm import AutoModel

        torch.set_num_threads(args.threads)
        model = AutoModel.from_pretrained(
            args.model, device="cpu", layer_shards_saving_path=args.shards
        )
        times: list[float] = []
        if not args.prepare:
            ids = torch.arange(100, 100 + args.prompt).reshape(1, -1)
            seen = None
            for _ in range(args.gen + 1):
                begin = time.perf_counter()
                out = model(input_ids=ids, past_key_values=seen, use_cache=True)
                ids = out.logits[:, -1:].argmax(-1)
                seen = out.past_key_values
                times.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"first_s": times[:1], "token_s": times[1:], "peak_bytes": peak}))


if __name__ == "__main__":
    main()
