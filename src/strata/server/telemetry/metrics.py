"""Figures for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from strata.engine import Delta, EngineStatus
from strata.memory import peak_bytes
from strata.server.bridge import Observer

if TYPE_CHECKING:
    from strata.llm import LLM
    from strata.server.bridge import Bridge

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SWEEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Metrics(Observer):
    """Counts requests, tokens and steps."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "strata_requests",
            "HTTP requests by endpoint and status",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self._ttft = Histogram(
            "strata_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=_TTFT_S,
            registry=self._registry,
        )
        self._token_time = Histogram(
            "strata_time_per_output_token_seconds",
            "Between two tokens of an answer",
            buckets=_TOKEN_S,
            registry=self._registry,
        )
        self._sweep_tokens = Histogram(
            "strata_tokens_per_sweep",
            "Tokens computed in one pass over the weights, of guessed ones those that were right",
            buckets=_SWEEP_TOKENS,
            registry=self._registry,
        )
        self._step_time = Histogram(
            "strata_sweep_seconds",
            "Length of one pass over the weights",
            buckets=_TOKEN_S,
            registry=self._registry,
        )
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.embedded_tokens = 0
        self.embedding_passes = 0
        self.longest = 0
        self._counted = (0, 0)
        self.last_step_s: float | None = None
        self.busy_s = 0.0
        self.prompt_s = 0.0
        self.output_s = 0.0

    def watch(self, llm: LLM, bridge: Bridge) -> None:
        """Ask these for the state whenever somebody reads the figures."""
        self._counted = bridge.status.sweeps, bridge.status.tokens
        self._registry.register(_State(lambda: _state(self, llm, bridge)))

    def text(self) -> bytes:
        """Prometheus's text format 0.0.4."""
        # llama-server has a counter without the ending that the library gives to all of them.
        name = "llamacpp:n_tokens_max"
        longest = (
            f"# HELP {name} Tokens of the longest sequence so far\n"
            f"# TYPE {name} counter\n{name} {self.longest}\n"
        )
        return generate_latest(self._registry) + longest.encode()

    def on_embedded(self, tokens: int) -> None:
        """Texts of so many tokens were embedded in one pass."""
        self.embedded_tokens += tokens
        self.embedding_passes += 1
        self.longest = max(self.longest, tokens)

    def on_search(self, prompt: int, cached: int, beams: Sequence[int]) -> None:
        """A beam search of a prompt of so many tokens is over, and gives beams of so many."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.output_tokens += sum(beams)
        self.longest = max(self.longest, prompt + max(beams, default=0))

    def on_token(self, arrived: float, previous: float | None, delta: Delta) -> None:
        """See Observer."""
        now = perf_counter()
        self.output_tokens += 1
        request = delta.request
        self.longest = max(self.longest, len(request.prompt) + len(request.output))
        if previous is None:
            self._ttft.observe(now - arrived)
            self.prompt_s += now - (delta.request.started or arrived)
            self.prompt_tokens += len(delta.request.prompt)
            self.cached_tokens += delta.request.cached_tokens
        else:
            self._token_time.observe(now - previous)
            self.output_s += now - previous

    def on_step(self, seconds: float, status: EngineStatus) -> None:
        """See Observer."""
        self.last_step_s = seconds
        self.busy_s += seconds
        self._step_time.observe(seconds)
        (sweeps, tokens), self._counted = self._counted, (status.sweeps, status.tokens)
        # A step has no sweep while what was saved of a prompt is loaded.
        if status.sweeps > sweeps:
            self._sweep_tokens.observe(status.tokens - tokens)


class _State(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


def _state(metrics: Metrics, llm: LLM, bridge: Bridge) -> Iterable[Metric]:
    status = bridge.status
    yield GaugeMetricFamily("strata_requests_running", "Requests that hold KV", status.running)
    yield GaugeMetricFamily(
        "strata_requests_waiting", "Requests in the queue", max(bridge.open - status.running, 0)
    )
    yield GaugeMetricFamily(
        "strata_kv_blocks_used", "KV blocks that requests hold", status.kv_blocks_used
    )
    yield GaugeMetricFamily(
        "strata_kv_blocks_free", "KV blocks that are free", status.kv_blocks_free
    )
    yield GaugeMetricFamily(
        "strata_kv_blocks_cached",
        "Free KV blocks with prefixes that can be found again",
        status.kv_blocks_cached,
    )
    tiers = GaugeMetricFamily(
        "strata_tier_bytes", "Bytes by tier and owner", labels=("tier", "owner")
    )
    for owner, size in llm.ledger.owned.items():
        tiers.add_metric(("host", owner), size)
    if llm.plan is not None:
        tiers.add_metric(("disk", "streamed weights"), llm.plan.predicted.sweep_bytes)
    yield tiers
    sweeps = llm.engine.runner.sweeps
    yield CounterMetricFamily(
        "strata_streamed_bytes",
        "Bytes of weights read from disk in sweeps",
        sweeps.prefill.streamed.from_disk + sweeps.decode.streamed.from_disk,
    )
    if llm.ledger.budget is not None:
        yield GaugeMetricFamily("strata_memory_budget_bytes", "Memory allowed", llm.ledger.budget)
    yield GaugeMetricFamily("strata_memory_peak_bytes", "Most resident memory so far", peak_bytes())
    yield CounterMetricFamily("strata_sweeps", "Passes over the weights", status.sweeps)
    yield CounterMetricFamily("strata_computed_tokens", "Tokens computed", status.tokens)
    yield CounterMetricFamily("strata_prompt_tokens", "Tokens of prompts", metrics.prompt_tokens)
    yield CounterMetricFamily("strata_output_tokens", "Tokens of answers", metrics.output_tokens)
    yield CounterMetricFamily(
        "strata_prefix_hit_tokens",
        "Tokens of prompts found in the prefix cache",
        status.prefix_hit_tokens,
    )
    yield CounterMetricFamily(
        "strata_prefix_miss_tokens",
        "Tokens of prompts that had to be computed",
        status.prefix_miss_tokens,
    )
    yield CounterMetricFamily(
        "strata_preemptions", "Times that a request gave up its KV blocks", status.preemptions
    )
    yield CounterMetricFamily(
        "strata_draft_tokens", "Tokens guessed ahead of their answers", status.draft_tokens
    )
    yield CounterMetricFamily(
        "strata_draft_tokens_kept", "Guessed tokens that were right", status.draft_tokens_kept
    )
    yield GaugeMetricFamily(
        "strata_draft_saved_seconds",
        "Time gained by guessing, by what steps take with and without",
        status.draft_saved_s,
    )
    yield from _as_llama_server(metrics, status, bridge)


def _as_llama_server(metrics: Metrics, status: EngineStatus, bridge: Bridge) -> Iterable[Metric]:
    """The same by llama-server's names, for dashboards that were made for it."""
    computed = metrics.prompt_tokens - metrics.cached_tokens
    read = computed + metrics.embedded_tokens
    counters: dict[str, tuple[str, float]] = {
        "prompt_tokens": ("Prompt tokens that were computed", read),
        "prompt_tokens_cached": ("Prompt tokens that were known", metrics.cached_tokens),
        "prompt_seconds": ("Time that prompts took", metrics.prompt_s),
        "tokens_predicted": ("Tokens of answers", metrics.output_tokens),
        "tokens_predicted_seconds": ("Time that answers took", metrics.output_s),
        "n_decode": ("Passes over the weights", status.sweeps + metrics.embedding_passes),
        "spec_decode_num_drafts": ("Guesses ahead of answers", status.drafts),
        "spec_decode_num_draft_tokens": ("Tokens that were guessed", status.draft_tokens),
        "spec_decode_num_accepted_tokens": ("Of them kept", status.draft_tokens_kept),
    }
    for name, (text, value) in counters.items():
        yield CounterMetricFamily(f"llamacpp:{name}", text, value)
    gauges: dict[str, tuple[str, float]] = {
        "prompt_tokens_seconds": ("Prompt tokens a second", _rate(computed, metrics.prompt_s)),
        "predicted_tokens_seconds": (
            "Tokens of answers a second",
            _rate(metrics.output_tokens, metrics.output_s),
        ),
        "requests_processing": ("Requests that run", status.running),
        "requests_deferred": ("Requests that wait", max(bridge.open - status.running, 0)),
        "n_busy_slots_per_decode": (
            "Tokens a pass over the weights",
            _rate(status.tokens, status.sweeps),
        ),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"llamacpp:{name}", text, value)


def _rate(count: float, over: float) -> float:
    return count / over if over else 0.0
