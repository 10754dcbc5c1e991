"""What a server takes from its clients, and how it refuses the rest. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlmrun.errors import CheckpointError, ConfigError, DataError, LaunchError, Problem, VlmrunError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server; the defaults are those of `vlmrun serve`.

    Units:
        body_mb: mebibytes; megapixels: millions of pixels; the rest seconds or counts.

    Args:
        running: answers under way at most, over all workers.
        queue: questions that wait beside them; more get 429.
        image_hosts: hosts that images may be fetched from; `*` is any. Private addresses never.
    """

    running: int = 8
    queue: int = 64
    body_mb: int = 32
    megapixels: int = 40
    images: int = 16
    tokens: int = 1024
    choices: int = 8
    seconds: int = 300
    body_seconds: int = 30
    image_hosts: tuple[str, ...] = field(default=())


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        code: OpenAI's name of the error.
    """

    def __init__(self, status: int, problem: Problem, code: str) -> None:
        super().__init__(str(problem))
        self.status = status
        self.problem = problem
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form, and what / where / fix beside it."""
        problem = self.problem
        where = f" ({problem.where})" if problem.where else ""
        fix = f"; fix: {problem.fix}" if problem.fix else ""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {
            "error": {
                "message": f"{problem.what}{where}{fix}",
                "type": "rate_limit_error" if self.status == 429 else kind,
                "param": problem.where or None,
                "code": self.code,
                "what": problem.what,
                "where": problem.where,
                "fix": problem.fix,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, where that helps."""
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def bad(what: str, where: str, fix: str, status: int = 400, code: str = "invalid_value") -> Refused:
    """A request that cannot be answered as it is."""
    return Refused(status, Problem(what, where, fix), code)


def refused(error: VlmrunError) -> Refused:
    """What went wrong in a worker, as an answer to the client."""
    problem = error.problems[0]
    if isinstance(error, DataError | ConfigError):
        return Refused(400, problem, "context_length_exceeded" if " tokens" in problem.what else "invalid_value")
    assert isinstance(error, LaunchError | CheckpointError) or type(error) is VlmrunError
    return Refused(503, problem, "unavailable")
