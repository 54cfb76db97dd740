"""Chat templates that are known to be harmless, by their digests: they need no guarded process.

What a listed one takes is linear in the messages and tools that it is given, whatever these say.
To add one: ``python tools/check_template.py FILE`` gives its line, or says what in it may be more
than that; then it is not listed.
"""

from __future__ import annotations

from hashlib import sha256

_LISTED = """
a30b8c4531dda19196f35fb95ab84110dd8357acbd75eea3776c5543a70db5a9  Bielik-11B-v3.0-Instruct
dd2675619a64a449cdcdd2b93e605a0a50764cee41e344f244752bc93643936c  DeepSeek-R1-Distill-Llama-8B
bbe594884b44d740667ee65a70bc8d333a565eab3d63ea59f291ea73ada84ba6  DeepSeek-R1-Distill-Qwen-32B
039a4710e2aabaa79e85a233fa3daa4fbc030a4a8dc218cb7f34fb0c4b8c13b1  Devstral-Small-2507
2fc9dbfaea552f864b4b8cdf9d17401e9a49cbda199498531f137eb0ec5ae1d8  functionary-medium-v3.1
ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6  gemma-2-2b-it
e6e2ddfb13f8aef529a869e362f74743725c0919b8675139b93c0cb1623796c8  GLM-4.6
d63ad536c3c81880043e22ec7fd08db42b4d8fb7c89c7138bc562bfa25281375  GLM-4.7-Flash
d0657ba05651bd2134160e7a9fbe40f1aa51ecb6bc2724618e34b04466291f87  granite-3.3-2B-Instruct
aab20feb9bc6881f941ea649356130ffbc4943b3c2577c0991e1fba90de5a0fc  Kimi-K2
444819b8ad4612870827ac05b9147fe9e3344d3850cae8c2790898fc514099ff  Laguna-S-2.1
b4ab3a1c8f748e6f874d9aea102333efe7ab82528e8ab81c2eb155851e8705c6  ling-3.0-flash
93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7  Llama-3.1-Instruct, Llama-3.3
d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f  Llama-3.2-3B-Instruct
e0d5e227f0aedba8bc36d9173d4f814b6b9bc8bafa3e50d53fa0071567f90102  llama-cpp-deepseek-r1
e70723034f0928096207d99b2ec4678950361f290f5341c017d957f88b196935  llama-cpp-rwkv-world
e7fa3f870aabfc1c9cadf448926fee2bc3e0e4c2546edb2b7a8b933313607057  MiMo-VL
e1790d8fbe1c587e6fc385e2a712363f86faf52ae1fb1fcbfc5ded3eb1fae70a  MiniMax-M1
a3e05b110e2d1ccf5373f2d2a09f8e2e6c7fc48247c8cb6cab5160a462dc2209  MiniMax-M2
52ae8e50fa083e63a0a5726eeffc85502089b82064aceb1bddf0366f7317b3f8  NVIDIA-Nemotron-Nano-v2
78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90  Phi-3.5-mini-instruct
55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a  Qwen2.5-7B-Instruct
87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5  Qwen3-0.6B
a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715  Qwen3.5-4B
94c6035b4f0eb905c95e2b7d8dace8547abca03f7fe3e441ba8a6388b1941272  QwQ-32B
872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788  SmolLM2-Instruct
cbc1d50f777ec029b33f53b23d7a224cceb65bcc8c7fac54946dbb56514e4d1e  SmolLM3-3B
c88f16f22024c5c5975a275b1168a711eef23fed681ebc51ed493fc13efeab72  Spark2.5
3a7cb642bf35cb4106cd3895147d8fcded3be856ad56cf6c88510aec879c2427  StepFun3.5-Flash
"""
"""SHA-256 of the text in UTF-8 without white space at its ends, and whose it is."""

_DIGESTS = frozenset(line.split()[0] for line in _LISTED.strip().splitlines())


def digest(source: str) -> str:
    """By which a template is known."""
    return sha256(source.strip().encode("utf-8", "surrogatepass")).hexdigest()


def is_known(source: str) -> bool:
    """Whether a template may be rendered in place."""
    return digest(source) in _DIGESTS
