"""Everything an endpoint can do wrong, over real sockets: which error, what it says, what it costs."""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct.backends import faults
from selfinstruct.backends.governor import Governed
from selfinstruct.backends.openai import OpenAIBackend
from selfinstruct.backends.retry import Retrying
from selfinstruct.errors import (
    AccessDenied,
    BackendError,
    BadReply,
    ContextTooLong,
    QuotaExhausted,
    RateLimited,
    RequestRefused,
    Unavailable,
    UnknownModel,
    WrongKey,
)
from selfinstruct.values import Capabilities, Completion, Message, Request, Sampling
from tests.backends.endpoint import Endpoint, Reply, Script, as_json, chat, continuation, error

KEY = "sk-canary-7f3e9d"
CHAT = Request(Sampling(max_tokens=20), messages=(Message("user", "hi"),))
RAW = Request(Sampling(max_tokens=20), prompt="Task 1:")


@pytest.fixture(autouse=True, params=["aiohttp", "httpx2"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra `fast`, and without it."""
    if request.param == "httpx2":
        monkeypatch.setitem(sys.modules, "aiohttp", None)


def client(base_url: str, **more: Any) -> OpenAIBackend:
    capabilities = Capabilities(completions=True)
    return OpenAIBackend(
        "small", name="openai/small", base_url=base_url, api_key=KEY, capabilities=capabilities, **more
    )


async def ask(base_url: str, request: Request = CHAT, *, attempts: int = 1, **more: Any) -> Completion | BackendError:
    """Ask through all three layers."""
    backend = Retrying(Governed(client(base_url, **more), concurrency=4), attempts=attempts, patience=0.0)
    try:
        return await backend.complete(request)
    except BackendError as problem:
        return problem
    finally:
        await backend.aclose()


def put(script: Script, request: Request = CHAT, **more: Any) -> tuple[Completion | BackendError, int]:
    """Return what came of it and how many requests the endpoint saw."""

    async def main() -> tuple[Completion | BackendError, int]:
        async with Endpoint(script) as endpoint:
            outcome = await ask(endpoint.base_url, request, **more)
            return outcome, len(endpoint.requests)

    return asyncio.run(main())


# Permanent faults


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (error(401, "Incorrect API key provided", code="invalid_api_key"), WrongKey, "--api-key-env"),
        (error(403, "Forbidden"), WrongKey, "--api-key-env"),
        (Reply(401), WrongKey, "an empty body"),
        (error(404, "The model `small` does not exist", code="model_not_found"), UnknownModel, "'small'"),
        (Reply(404, b"<h1>Not Found</h1>"), UnknownModel, "--base-url"),
        (error(403, "Project has no access to model `small`", code="model_not_found"), UnknownModel, "'small'"),
        (error(400, "Model Not Exist", code="invalid_request_error"), UnknownModel, "--model"),
        (error(400, "small is not a valid model ID", code=400), UnknownModel, "--model"),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), QuotaExhausted, "credit"),
        (error(402, "Insufficient Balance"), QuotaExhausted, "credit"),
        (error(403, "insufficient balance"), QuotaExhausted, "credit"),
        (error(429, "please top up", code="1113"), QuotaExhausted, "credit"),
        (error(400, "Access denied", code="Arrearage", type="Arrearage"), QuotaExhausted, "credit"),
        (error(400, "Range of input length should be [1, 6000]"), ContextTooLong, "6000"),
        (error(400, "no such model", code="1211"), UnknownModel, "--model"),
        (error(400, "too long", code="context_length_exceeded"), ContextTooLong, "context"),
        (
            error(400, "request (700 tokens) exceeds the available size", type="exceed_context_size_error", code=400),
            ContextTooLong,
            "context",
        ),
        (as_json({"object": "error", "message": "This model's maximum context length is 2048 tokens."}, 400),
         ContextTooLong, "2048"),
        (error(400, "Invalid 'temperature': above maximum"), RequestRefused, "temperature"),
        (as_json({"detail": "nonsense"}, 422), RequestRefused, "nonsense"),
        (error(429, "Request too large for small: Limit 100, Requested 900"), RequestRefused, "tokens per minute"),
        (Reply(501, b"not here"), RequestRefused, "not here"),
        (Reply(308, headers={"Location": "https://elsewhere.invalid/v1"}), AccessDenied, "elsewhere.invalid"),
        (as_json([{"error": {"message": "key not valid", "status": "INVALID_ARGUMENT"}}], 403), WrongKey, "not valid"),
        (as_json({"error": {"message": "model gone", "code": 404}}), UnknownModel, "model gone"),
    ],
)  # fmt: skip
def test_a_permanent_fault_costs_exactly_one_request(reply: Reply, kind: type[BackendError], words: str) -> None:
    outcome, requests = put(reply, attempts=6)
    assert type(outcome) is kind, outcome
    assert requests == 1
    assert words in str(outcome)
    assert not outcome.retryable
    assert outcome.fatal == issubclass(kind, AccessDenied)


def test_a_model_that_says_not_found_of_something_else_is_not_missing() -> None:
    outcome, _ = put(error(400, "model small does not support tools: function lookup not found"))
    assert type(outcome) is RequestRefused


# Transient faults


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 520, 529])
def test_a_server_in_trouble_is_unavailable(status: int) -> None:
    outcome, requests = put(error(status, "overloaded", headers={"Retry-After": "12"}))
    assert type(outcome) is Unavailable
    assert (outcome.status, outcome.retry_after, outcome.retryable) == (status, 12.0, True)
    assert "overloaded" in str(outcome) and requests == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "-4"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "-inf"}, 0.0),
        ({"Retry-After": "1700000000"}, None),
        ({}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0.5s"}, 60.5),
        (
            {
                "x-ratelimit-remaining-requests": "7",
                "x-ratelimit-reset-requests": "1h",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "120ms",
            },
            0.12,
        ),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "later"}, None),
    ],
)
def test_too_many_requests_says_when_to_come_back(headers: Mapping[str, str], seconds: float | None) -> None:
    async def main() -> None:
        async with Endpoint(error(429, "slow down", headers=headers)) as endpoint:
            backend = client(endpoint.base_url)
            with pytest.raises(RateLimited) as caught:
                await backend.complete(CHAT)
            await backend.aclose()
            assert caught.value.retry_after == (None if seconds is None else pytest.approx(seconds))
            assert caught.value.retryable and len(endpoint.requests) == 1

    asyncio.run(main())


@given(st.text(st.characters(codec="latin-1")), st.text("0123456789.smhd-e"))
def test_no_header_makes_us_wait_for_ever(word: str, number: str) -> None:
    for value in (word, number):
        headers = {"retry-after": value, "retry-after-ms": value}
        headers |= {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": value}
        seconds = faults.retry_after(headers)
        assert seconds is None or 0.0 <= seconds <= 7 * 86400.0


@pytest.mark.parametrize(
    "message",
    [
        "Allocated quota exceeded, please increase your quota limit.",
        "You exceeded your current quota. See https://help.aliyun.com/zh/model-studio/error-code#token-limit",
    ],
)
def test_a_quota_of_tokens_per_minute_comes_back_by_itself(message: str) -> None:
    outcome, _ = put(error(429, message, code="insufficient_quota", type="insufficient_quota"))
    assert type(outcome) is RateLimited


def test_an_http_date_is_counted_from_now() -> None:
    moment = 1_700_000_000.0
    headers = {"retry-after": email.utils.formatdate(moment + 90, usegmt=True)}
    assert faults.retry_after(headers, now=moment) == 90.0


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"<!doctype html><title>Sign in to the hotel's network</title>"),
        as_json({"error": {"message": "upstream failed"}}),
        as_json({"error": "upstream failed"}),
        Reply(body=b'{"choices": [{"message": {"content": "half an ans'),
        Reply(body=b""),
        Reply(204),
        Reply(body=b"\xff\xfe\x00garbage"),
        as_json({"choices": []}),
        as_json({"choices": None}),
        as_json({"choices": ["x"]}),
        as_json([1, 2]),
        as_json("text"),
        as_json({"choices": [{"index": 0}]}),
        as_json({"choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": "stop"}]}),
        as_json({"choices": [{"error": {"message": "provider died"}, "finish_reason": "error"}]}),
    ],
    ids=lambda reply: reply.body[:40].decode("latin-1"),
)
def test_status_200_without_a_completion_is_a_bad_reply(reply: Reply) -> None:
    outcome, requests = put(reply)
    assert type(outcome) is BadReply, outcome
    assert outcome.retryable and requests == 1


@pytest.mark.parametrize("body", [{"choices": [{"index": 0, "finish_reason": "stop"}]}, {"choices": [{"text": None}]}])
def test_a_raw_completion_without_text_is_a_bad_reply(body: Any) -> None:
    outcome, _ = put(as_json(body), RAW)
    assert type(outcome) is BadReply


def test_a_bad_reply_shows_the_start_of_what_came() -> None:
    outcome, _ = put(Reply(body=b"<html>\n" + b"x" * 5000))
    assert '"<html> xxx' in str(outcome) and len(str(outcome)) < 500


@pytest.mark.parametrize(
    ("code", "kind"),
    [(429, RateLimited), (502, Unavailable), (401, WrongKey), ("context_length_exceeded", ContextTooLong)],
)
def test_an_error_under_status_200_is_what_its_code_says(code: Any, kind: type[BackendError]) -> None:
    async def main() -> None:
        async with Endpoint(as_json({"error": {"message": "no", "code": code}})) as endpoint:
            backend = client(endpoint.base_url)
            with pytest.raises(kind):
                await backend.complete(CHAT)
            await backend.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    "reply",
    [Reply(cut=-1), Reply(body=chat("hello").body, cut=20), Reply(body=b"x", cut=0)],
    ids=["before the head", "in the middle of the body", "after the head"],
)
def test_a_broken_connection_is_unavailable(reply: Reply) -> None:
    outcome, requests = put(reply)
    assert type(outcome) is Unavailable and requests == 1
    assert "connection broke" in str(outcome)


def test_damaged_compression_is_unavailable() -> None:
    outcome, _ = put(Reply(body=b'{"a":1}', headers={"Content-Encoding": "gzip"}))
    assert type(outcome) is Unavailable and "compression" in str(outcome)


@pytest.mark.parametrize(
    "reply",
    [chat("late", delay=30.0), Reply(body=chat("t" * 500).body, piece=10, pause=0.05)],
    ids=["slow", "trickling"],
)
def test_an_answer_that_takes_too_long_is_given_up(reply: Reply) -> None:
    """The trickle would take 3 s, and never pauses for as long as the time-out."""

    async def main() -> None:
        async with Endpoint(reply) as endpoint:
            outcome = await ask(endpoint.base_url, timeout=0.3)
            assert type(outcome) is Unavailable and "0.3 s" in str(outcome)
            await _until(lambda: endpoint.requests[0].dropped)

    asyncio.run(main())


def test_a_trickle_within_the_time_out_is_read_whole() -> None:
    outcome, _ = put(Reply(body=chat("drop by drop").body, piece=20, pause=0.01), timeout=30.0)
    assert isinstance(outcome, Completion) and outcome.text == "drop by drop"


# No connection


def test_nobody_listens() -> None:
    async def main() -> None:
        async with Endpoint(chat("x")) as endpoint:
            base_url = endpoint.base_url
        outcome = await ask(base_url)
        assert type(outcome) is Unavailable and "refused" in str(outcome) and base_url in str(outcome)

    asyncio.run(main())


def test_a_name_that_nobody_has() -> None:
    outcome = asyncio.run(ask("http://llm.invalid/v1"))
    assert type(outcome) is Unavailable and "'llm.invalid' can't be resolved" in str(outcome)


def test_a_connection_that_never_stands() -> None:
    """A socket that listens and never accepts, its queue full: SYNs are dropped."""
    import socket

    async def main() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            fillers = [socket.socket() for _ in range(4)]
            try:
                for filler in fillers:
                    filler.setblocking(False)
                    filler.connect_ex(listener.getsockname())
                await asyncio.sleep(0.05)
                outcome = await ask(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", connect_timeout=0.3)
            finally:
                for filler in fillers:
                    filler.close()
        assert type(outcome) is Unavailable and "no connection in 0.3 s" in str(outcome)

    asyncio.run(main())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_a_certificate_nobody_trusts(tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with Endpoint(chat("x"), tls=tls) as endpoint:
            outcome = await ask(endpoint.base_url)
            assert type(outcome) is Unavailable
            assert "TLS" in str(outcome) and "SSL_CERT_FILE" in str(outcome)
            assert endpoint.requests == []

    asyncio.run(main())


def test_a_private_authority_can_be_trusted(
    authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def main() -> None:
        async with Endpoint(chat("secret"), tls=tls) as endpoint:
            outcome = await ask(endpoint.base_url)
            assert isinstance(outcome, Completion) and outcome.text == "secret"

    asyncio.run(main())


def test_http_spoken_to_a_tls_port(tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with Endpoint(chat("x"), tls=tls) as endpoint:
            outcome = await ask(endpoint.base_url.replace("https", "http"))
            assert type(outcome) is Unavailable

    asyncio.run(main())


# The whole story


@pytest.mark.slow
def test_a_run_of_bad_luck_ends_well() -> None:
    script = [
        error(429, "slow down", headers={"retry-after-ms": "30"}),
        error(500, "oops"),
        Reply(body=b"<html>"),
        Reply(body=b'{"choices"', cut=5),
        chat("at last"),
    ]

    async def main() -> None:
        async with Endpoint(script) as endpoint:
            backend = Retrying(Governed(client(endpoint.base_url), concurrency=4))
            completion = await backend.complete(CHAT)
            await backend.aclose()
            assert completion.text == "at last" and len(endpoint.requests) == 5

    asyncio.run(main())


def test_retry_after_is_honoured_on_the_wire() -> None:
    async def main() -> None:
        script = [error(429, "slow down", headers={"Retry-After": "1"}), chat("ok")]
        async with Endpoint(script) as endpoint:
            backend = Retrying(Governed(client(endpoint.base_url), concurrency=4))
            await backend.complete(CHAT)
            await backend.aclose()
            first, second = endpoint.requests
            assert second.at - first.at >= 0.99

    asyncio.run(main())


def test_a_server_that_goes_and_comes_back() -> None:
    async def main() -> None:
        async with Endpoint(chat("before")) as endpoint:
            backend = Retrying(Governed(client(endpoint.base_url), concurrency=4))
            assert (await backend.complete(CHAT)).text == "before"
        waiting = asyncio.create_task(backend.complete(CHAT))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        async with Endpoint(chat("after"), port=endpoint.port):
            assert (await waiting).text == "after"
            await backend.aclose()

    asyncio.run(main())


def test_cancelling_closes_the_connection_and_the_next_request_is_fine() -> None:
    async def main() -> None:
        async with Endpoint([chat("late", delay=60.0), chat("ok")]) as endpoint:
            backend = Retrying(Governed(client(endpoint.base_url), concurrency=1))
            task = asyncio.create_task(backend.complete(CHAT))
            await _until(lambda: len(endpoint.requests) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _until(lambda: endpoint.requests[0].dropped)
            assert (await backend.complete(CHAT)).text == "ok"
            await backend.aclose()

    asyncio.run(main())


def test_connections_are_kept_and_never_more_than_allowed() -> None:
    async def main() -> None:
        async with Endpoint(chat("ok", top={"pad": "x" * 100})) as endpoint:
            backend = client(endpoint.base_url, connections=120)
            for _ in range(3):
                await asyncio.gather(*(backend.complete(CHAT) for _ in range(150)))
            await backend.aclose()
            assert len(endpoint.requests) == 450
            assert endpoint.connections <= 120

    asyncio.run(main())


def test_the_endpoint_serves_programs_without_a_loop() -> None:
    with Endpoint(
        lambda seen: continuation("raw") if seen.path.endswith("/v1/completions") else chat("chat")
    ) as endpoint:
        outcomes = [asyncio.run(ask(endpoint.base_url, request)) for request in (CHAT, RAW)]
    assert [outcome.text for outcome in outcomes if isinstance(outcome, Completion)] == ["chat", "raw"]
    assert [seen.number for seen in endpoint.requests] == [0, 1]


def test_a_script_that_fails_is_not_mistaken_for_a_faulty_server() -> None:
    def broken(_: object) -> Reply:
        raise LookupError("the script is wrong")

    with pytest.raises(LookupError, match="the script is wrong"):
        put(broken)


async def _until(condition: Any) -> None:
    """Wait for it, with a limit that only a hanging program reaches."""
    limit = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < limit, "it never happened"
        await asyncio.sleep(0.005)
