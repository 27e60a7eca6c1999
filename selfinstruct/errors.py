"""Every error the program raises on purpose, on one screen.

    SelfInstructError               exit 1   unexpected, or `verify` found faults
    ├── ConfigError                 exit 2   command line, config, seed, prompt or input file
    │   ├── SeedError                        names file:line
    │   ├── PromptError                      names the template and the variable
    │   ├── InputError                       names file:line of a data file
    │   ├── PluginError                      unknown name, or a plugin that fails to load
    │   └── ModelFileError                   wrong, damaged or unfetchable model file
    ├── RunError                    exit 3   the run folder
    │   ├── RunNotFound
    │   ├── RunLocked                        another process holds it
    │   ├── RunMismatch                      made with another config: says which fields
    │   └── StoreError                       disk full, read-only, damaged or newer run.sqlite
    ├── Stopped                     exit 5   short of the target, resumable: budget, saturation
    │   └── Interrupted             exit 130 Ctrl-C or SIGTERM
    └── BackendError                exit 4   the endpoint
        ├── RateLimited             retryable
        ├── Unavailable             retryable   connection, timeout, 5xx
        ├── BadReply                retryable   200 with something that is not a completion
        ├── RequestRefused                      400: this request only; the run goes on
        │   └── ContextTooLong
        ├── ServerDied                          the embedded model's process is gone
        └── AccessDenied                        stops the run at the first answer
            ├── WrongKey                        401, 403
            ├── UnknownModel                    404
            └── QuotaExhausted                  insufficient_quota: paying helps, waiting does not

A message says what was expected and what to do. Only the command line formats errors, and only
`retryable` and `fatal` steer the program: nothing ever looks at a message's text.
"""

from __future__ import annotations

from typing import ClassVar


class SelfInstructError(Exception):
    """Root of the tree; `str(error)` is meant to be read by the person at the terminal."""

    exit_code: ClassVar[int] = 1


class ConfigError(SelfInstructError):
    """The command line, a config, seed, prompt or input file is not what it should be."""

    exit_code = 2


class SeedError(ConfigError):
    """A seed file is missing or one of its lines is not a task."""


class PromptError(ConfigError):
    """A prompt template is missing, does not parse, or asks for a variable nobody gives it."""


class InputError(ConfigError):
    """A data file the person gave can't be read as what they said it is."""


class PluginError(ConfigError):
    """No recipe, backend, filter, format or tool of that name, or it fails to load."""


class ModelFileError(ConfigError):
    """A local model file is missing, damaged, of the wrong kind, or can't be fetched."""


class RunError(SelfInstructError):
    """The run folder can't be used."""

    exit_code = 3


class RunNotFound(RunError):
    """There is no run in that folder."""


class RunLocked(RunError):
    """Another process is writing to that run."""


class RunMismatch(RunError):
    """The folder holds a run made with another config."""


class StoreError(RunError):
    """The run's database can't be opened or written."""


class Stopped(SelfInstructError):
    """The run ended before its target, on purpose and resumable; the message says why and how to go on."""

    exit_code = 5


class Interrupted(Stopped):
    """The person, or the system, asked the run to end."""

    exit_code = 130


class BackendError(SelfInstructError):
    """The endpoint did not give a completion.

    `retryable`: the same request may succeed later. `fatal`: no request can succeed until the
    person changes something, so the run stops at once. `retry_after`: seconds the server asked
    us to wait, if it said. `status`: the HTTP status, if there was an answer. `maybe_billed`: the
    request had left and no answer came, so the server may have worked, and charged, for it.
    """

    exit_code = 4
    retryable: ClassVar[bool] = False
    fatal: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        maybe_billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.maybe_billed = maybe_billed


class RateLimited(BackendError):
    """429: too many requests at the moment."""

    retryable = True


class Unavailable(BackendError):
    """No answer: connection, time-out, TLS, DNS, or a 5xx."""

    retryable = True


class BadReply(BackendError):
    """An answer with status 200 that is not a completion: HTML, cut JSON, no choices."""

    retryable = True


class RequestRefused(BackendError):
    """400 or 422: this request can't be answered, others may."""


class ContextTooLong(RequestRefused):
    """The prompt and `max_tokens` do not fit the model's context."""


class ServerDied(BackendError):
    """The embedded model's own process has ended; resuming starts a new one."""

    fatal = True


class AccessDenied(BackendError):
    """Nothing can be answered until the person changes key, model or plan."""

    fatal = True


class WrongKey(AccessDenied):
    """401 or 403."""


class UnknownModel(AccessDenied):
    """The endpoint does not serve that model."""


class QuotaExhausted(AccessDenied):
    """The account has no credit left; unlike a rate limit, waiting does not help."""
