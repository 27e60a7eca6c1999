"""Backends: what answers requests. Retry, rate limits and budget are wrappers of the same shape."""

from typing import Protocol

from selfinstruct.values import Capabilities, Completion, Request


class Backend(Protocol):
    """One coroutine that answers a request; a wrapper takes a backend and is one."""

    @property
    def name(self) -> str:
        """Provider and model, as the person wrote them."""

    @property
    def capabilities(self) -> Capabilities:
        """What the endpoint understands beyond plain chat."""

    async def complete(self, request: Request) -> Completion:
        """Answer, or raise a BackendError and nothing else."""

    async def aclose(self) -> None:
        """Let go of connections and processes."""
