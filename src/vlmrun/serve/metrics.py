"""What a server counts, for Prometheus. Nothing of a question or an answer is in it. Free of torch."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vlmrun.serve.messages import Usage

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "vlmrun"}
        self.requests = Counter("requests", "Requests by route and status.", ["route", "status"], **made)
        self.running = Gauge("running", "Requests that are being answered or wait for it.", **made)
        self.prompt = Counter("prompt_tokens", "Tokens of prompts.", ["model"], **made)
        self.reused = Counter("reused_tokens", "Tokens of prompts that were not computed again.", ["model"], **made)
        self.completion = Counter("completion_tokens", "Tokens of answers.", ["model"], **made)
        self.first = Histogram(
            "first_token_seconds", "From asking to the first token.", ["model"], buckets=_SECONDS, **made
        )
        self.images = Histogram("image_seconds", "Spent on a request's images.", ["model"], buckets=_SECONDS, **made)
        self.restarts = Counter("worker_restarts", "Workers that died and were started again.", **made)
        self.cancelled = Counter("cancelled", "Requests whose client left before the end.", **made)

    def answered(self, model: str, usage: Usage) -> None:
        """Counts an answer."""
        self.prompt.labels(model).inc(usage.prompt)
        self.reused.labels(model).inc(usage.reused)
        self.completion.labels(model).inc(usage.completion)
        self.first.labels(model).observe(usage.first_seconds)
        self.images.labels(model).observe(usage.image_seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
