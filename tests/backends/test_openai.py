"""What the client sends, and what it makes of what comes back."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct.backends import faults, wire
from selfinstruct.backends.openai import OpenAIBackend
from selfinstruct.errors import BackendError, BadReply, ConfigError, RequestRefused, WrongKey
from selfinstruct.values import Capabilities, Completion, Message, Request, Sampling, ToolCall
from tests.backends.endpoint import Endpoint, Reply, Script, as_json, chat, continuation, error

KEY = "sk-canary-7f3e9d"
EVERYTHING = Capabilities(completions=True, json_schema=True, seed=True, logprobs=True, llama_sampling=True)
SAMPLING = Sampling(
    max_tokens=40,
    temperature=0.8,
    top_p=0.9,
    stop=("\n20.", "###"),
    presence_penalty=0.1,
    frequency_penalty=0.2,
    min_p=0.05,
    top_k=30,
    repeat_penalty=1.1,
    repeat_last_n=128,
    logprobs=True,
)
CHAT = Request(
    SAMPLING, messages=(Message("system", "be brief"), Message("user", "hi")), schema='{"type":"object"}', seed=7
)
RAW = Request(SAMPLING, prompt="Task 1:", schema='{"type":"object"}', seed=7)
PLAIN = Request(Sampling(max_tokens=40), messages=(Message("user", "hi"),))


@pytest.fixture(autouse=True, params=["aiohttp", "httpx2"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra `fast`, and without it."""
    if request.param == "httpx2":
        monkeypatch.setitem(sys.modules, "aiohttp", None)


def client(base_url: str, capabilities: Capabilities = EVERYTHING, **more: Any) -> OpenAIBackend:
    return OpenAIBackend(
        "small", name="openai/small", base_url=base_url, api_key=KEY, capabilities=capabilities, **more
    )


def ask(
    script: Script, *requests: Request, capabilities: Capabilities = EVERYTHING, **more: Any
) -> tuple[list[Completion | BackendError], Endpoint, OpenAIBackend]:
    """Put the requests one after the other to an endpoint; return answers or errors."""

    async def main() -> tuple[list[Completion | BackendError], Endpoint, OpenAIBackend]:
        answers: list[Completion | BackendError] = []
        async with Endpoint(script) as endpoint:
            backend = client(endpoint.base_url, capabilities, **more)
            try:
                for request in requests:
                    try:
                        answers.append(await backend.complete(request))
                    except BackendError as problem:
                        answers.append(problem)
            finally:
                await backend.aclose()
        return answers, endpoint, backend

    return asyncio.run(main())


def answer(script: Script, request: Request = PLAIN, **more: Any) -> Completion:
    [reply], _, _ = ask(script, request, **more)
    assert isinstance(reply, Completion), reply
    return reply


# What is sent


def test_chat_sends_everything_that_is_declared() -> None:
    _, endpoint, _ = ask(chat("ok"), CHAT)
    [seen] = endpoint.requests
    assert (seen.method, seen.path) == ("POST", "/v1/chat/completions")
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.json == {
        "model": "small",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 40,
        "temperature": 0.8,
        "top_p": 0.9,
        "stop": ["\n20.", "###"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "seed": 7,
        "logprobs": True,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "record", "strict": True, "schema": {"type": "object"}},
        },
        "min_p": 0.05,
        "top_k": 30,
        "repeat_penalty": 1.1,
        "repeat_last_n": 128,
    }


def test_nothing_undeclared_is_sent() -> None:
    _, endpoint, _ = ask(chat("ok"), CHAT, capabilities=Capabilities(seed=False))
    assert endpoint.requests[0].json.keys() == {
        "model", "messages", "max_tokens", "temperature", "top_p", "stop", "presence_penalty", "frequency_penalty",
    }  # fmt: skip


def test_raw_prompt_goes_to_completions_with_llama_cpps_schema_field() -> None:
    [reply], endpoint, _ = ask(continuation(" Name a river."), RAW)
    assert isinstance(reply, Completion) and reply.text == " Name a river."
    [seen] = endpoint.requests
    assert seen.path == "/v1/completions"
    assert seen.json["prompt"] == "Task 1:"
    assert seen.json["json_schema"] == {"type": "object"}
    assert seen.json["logprobs"] == 1
    assert "response_format" not in seen.json and "messages" not in seen.json


def test_tool_turns_and_extra_body() -> None:
    turns = (
        Message("user", "2+2?"),
        Message("assistant", "", thoughts="add", tool_calls=(ToolCall("calc", '{"e":"2+2"}', "c1"),)),
        Message("tool", "4", tool_call_id="c1"),
    )
    request = Request(Sampling(max_tokens=5), messages=turns)
    _, endpoint, _ = ask(chat("4"), request, extra_body={"enable_thinking": False})
    body = endpoint.requests[0].json
    assert body["enable_thinking"] is False
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "calc", "arguments": '{"e":"2+2"}'}}],
        },
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("request_", "capabilities"),
    [
        (RAW, Capabilities()),
        (Request(SAMPLING), EVERYTHING),
        (Request(SAMPLING, messages=(Message("user", "x"),), schema="{nonsense"), EVERYTHING),
    ],
    ids=["raw prompt undeclared", "nothing asked", "schema is not JSON"],
)
def test_what_cannot_be_said_costs_no_request(request_: Request, capabilities: Capabilities) -> None:
    [reply], endpoint, _ = ask(chat("never"), request_, capabilities=capabilities)
    assert isinstance(reply, RequestRefused)
    assert endpoint.requests == []


@given(st.text(st.characters(), max_size=40))
def test_clean_text_can_be_encoded_and_changes_only_surrogates(text: str) -> None:
    cleaned = faults.clean(text)
    cleaned.encode()
    assert faults.clean(cleaned) == cleaned
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert cleaned == text


def test_a_split_surrogate_pair_is_joined_and_a_lone_one_replaced() -> None:
    assert faults.clean("a\ud83d\ude00b\ud800c") == "a\U0001f600b\ufffdc"


def test_surrogates_survive_the_way_there_and_back() -> None:
    request = Request(Sampling(max_tokens=5), messages=(Message("user", "bad \udc80 byte"),))
    [reply], endpoint, _ = ask(chat("half \ud83d of a face"), request)
    assert isinstance(reply, Completion) and reply.text == "half \ufffd of a face"
    assert endpoint.requests[0].json["messages"][0]["content"] == "bad \ufffd byte"


# Adapting to a server that does not know a parameter

NO_MAX_TOKENS = error(
    400,
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    type="invalid_request_error",
    param="max_tokens",
    code="unsupported_parameter",
)
NO_TEMPERATURE = error(
    400,
    "Unsupported value: 'temperature' does not support 0.8 with this model. Only the default (1) value is supported.",
    param="temperature",
    code="unsupported_value",
)
REASONING_MODEL = [NO_MAX_TOKENS, NO_TEMPERATURE, chat("ok")]


def test_parameters_are_adapted_once_and_remembered() -> None:
    replies, endpoint, backend = ask(REASONING_MODEL, CHAT, CHAT)
    assert [reply.text for reply in replies if isinstance(reply, Completion)] == ["ok", "ok"]
    assert len(endpoint.requests) == 4
    for seen in endpoint.requests[2:]:
        assert seen.json["max_completion_tokens"] == 40
        assert "max_tokens" not in seen.json and "temperature" not in seen.json
    assert backend.adapted == ("max_tokens -> max_completion_tokens", "temperature")


@pytest.mark.parametrize(
    ("reply", "parameter"),
    [
        (error(400, "Unrecognized request argument supplied: min_p", type="invalid_request_error"), "min_p"),
        (
            as_json({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]}, 422),
            "seed",
        ),
        (error(400, "property 'logprobs' is unsupported", type="invalid_request_error"), "logprobs"),
        (error(400, "This response_format type is unavailable now", type="invalid_request_error"), "response_format"),
    ],
    ids=["OpenAI", "Mistral", "Groq", "DeepSeek"],
)
def test_other_servers_words_for_it(reply: Reply, parameter: str) -> None:
    [completion], endpoint, backend = ask([reply, chat("ok")], CHAT)
    assert isinstance(completion, Completion), completion
    assert backend.adapted == (parameter,)
    assert parameter in endpoint.requests[0].json and parameter not in endpoint.requests[1].json


def test_adapting_never_loops() -> None:
    """A server that objects to everything is asked once for each thing that can go."""
    everything = "unsupported: " + ", ".join(
        ["max_tokens", "max_completion_tokens", *wire.LLAMA_SAMPLING, "temperature"]
    )
    [reply], endpoint, backend = ask(error(400, everything), CHAT)
    assert isinstance(reply, RequestRefused)
    assert len(endpoint.requests) == 1 + len(backend.adapted) == 7


def test_what_the_person_asked_for_by_name_is_not_left_out() -> None:
    [reply], endpoint, _ = ask(NO_TEMPERATURE, CHAT, extra_body={"temperature": 0.5})
    assert isinstance(reply, RequestRefused)
    assert len(endpoint.requests) == 1


def test_a_bad_schema_does_not_cost_the_others_theirs() -> None:
    refusal = error(400, "Invalid schema for response_format 'record': 'x' is not permitted.", param="response_format")
    [reply], endpoint, backend = ask(refusal, CHAT)
    assert isinstance(reply, RequestRefused)
    assert len(endpoint.requests) == 1 and backend.adapted == ()


def test_stop_sequences_a_server_refuses_are_applied_here() -> None:
    refusal = error(400, "Unsupported parameter: 'stop' is not supported with this model.", param="stop")
    [reply], _, _ = ask([refusal, chat("19. Ok\n20. No ###", finish_reason="length")], CHAT)
    assert isinstance(reply, Completion)
    assert (reply.text, reply.finish_reason) == ("19. Ok", "stop")


def test_many_at_once_adapt_together() -> None:
    def script(seen: Any) -> Reply:
        return NO_MAX_TOKENS if "max_tokens" in seen.json else chat("ok")

    async def main() -> int:
        async with Endpoint(script) as endpoint:
            backend = client(endpoint.base_url)
            replies = await asyncio.gather(*(backend.complete(PLAIN) for _ in range(16)))
            assert [reply.text for reply in replies] == ["ok"] * 16
            await backend.complete(PLAIN)
            await backend.aclose()
            return len(endpoint.requests)

    assert asyncio.run(main()) <= 2 * 16 + 1


# What comes back


def test_a_whole_completion() -> None:
    reply = chat(
        "four",
        usage=(12, 3),
        reasoning_content="2+2",
        tool_calls=[{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        choice={"logprobs": {"content": [{"token": "fo", "logprob": -0.5}, {"token": "ur", "logprob": -1.5}]}},
    )
    completion = answer(reply)
    assert completion.text == "four" and completion.finish_reason == "stop" and completion.model == "served"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (12, 3)
    assert not completion.usage.estimated
    assert completion.logprob == -1.0
    assert completion.reasoning == "2+2"
    assert completion.tool_calls == (ToolCall("f", "{}", "c"),)


@pytest.mark.parametrize(
    ("logprobs", "mean"),
    [
        ({"token_logprobs": [None, -1.0, -3.0]}, -2.0),
        ({"content": [{"logprob": -1.0}], "token_logprobs": None}, -1.0),
        ({"token_logprobs": []}, None),
        ({"content": [{"logprob": -math.inf}, {"logprob": True}, 4]}, None),
        (None, None),
    ],
)
def test_mean_logprob_of_a_raw_completion(logprobs: Any, mean: float | None) -> None:
    assert answer(continuation("x", logprobs=logprobs), RAW).logprob == mean


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "abort", None])
def test_finish_reason_is_the_servers_own_word(reason: str | None) -> None:
    assert answer(chat("x", finish_reason=reason)).finish_reason == (reason or "")


@pytest.mark.parametrize(
    "more",
    [
        {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"refusal": "I can't help with that"},
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
    ],
)
def test_no_content_beside_something_else_is_an_empty_text(more: Mapping[str, Any]) -> None:
    assert answer(chat(None, **more)).text == ""


def test_no_content_when_cut_off_is_an_empty_text() -> None:
    assert answer(chat(None, finish_reason="length", usage=(5, 40))).text == ""


def test_content_in_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "fo"},
        {"type": "text", "text": "ur"},
    ]
    completion = answer(as_json({"choices": [{"message": {"content": parts}}]}))
    assert (completion.text, completion.reasoning) == ("four", "hm")


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": 3}, (0, 0), {"prompt_tokens": True}])
def test_missing_usage_is_estimated_and_says_so(usage: Any) -> None:
    completion = answer(chat("some words of an answer", usage=usage))
    assert completion.usage.estimated
    assert completion.usage.prompt_tokens > 0 and completion.usage.completion_tokens > 0


@given(st.text(max_size=200))
def test_an_estimate_is_positive_and_grows_with_the_text(text: str) -> None:
    assert 0 < wire.estimate_tokens(text) <= wire.estimate_tokens(text + "more") <= len(text.encode()) + 5


NAMES = ["choices", "message", "content", "text", "error", "code", "usage", "logprobs", "tool_calls", "function",
         "prompt_tokens", "completion_tokens", "finish_reason", "token_logprobs", "logprob", "thinking", "detail",
         "loc", "type", "param"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


def near_completions(inner: Any) -> dict[str, Any]:
    return {"choices": [{"message": inner, "text": inner, "logprobs": inner}], "usage": inner}


@given(JSON.map(json.dumps).map(str.encode) | JSON.map(near_completions).map(json.dumps).map(str.encode) | st.binary())
def test_whatever_comes_back_is_a_completion_or_a_backend_error(content: bytes) -> None:
    for request in (PLAIN, RAW):
        try:
            completion = wire.decode(content, request)
        except BackendError:
            continue
        completion.text.encode()
        completion.reasoning.encode()
        assert completion.usage.completion_tokens >= 0
        assert completion.logprob is None or math.isfinite(completion.logprob)


@given(JSON.map(json.dumps).map(str.encode) | st.binary(), st.integers(300, 599))
def test_whatever_an_error_says_it_becomes_a_readable_one(content: bytes, status: int) -> None:
    problem = faults.fault(status, {}, content, model="m")
    str(problem).encode()
    assert len(str(problem)) < 700
    assert faults.unsupported_parameter(content, {"temperature", "max_tokens"}) in {None, "temperature", "max_tokens"}


def test_deeply_nested_json_is_a_bad_reply() -> None:
    with pytest.raises(BadReply):
        wire.decode(b"[" * 200_000, PLAIN)


# The key


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 422, 429, 500])
@pytest.mark.parametrize("padding", [0, 262])  # so that the cut goes through the key
def test_the_key_is_in_no_message_repr_or_traceback(status: int, padding: int) -> None:
    said = "." * padding + f"Incorrect API key provided: {KEY}, Authorization: Bearer {KEY}"
    body = json.dumps({"error": {"message": said, "code": f"{KEY}", "param": KEY}}).encode()

    async def main() -> str:
        async with Endpoint(Reply(status, body, {"Location": f"https://elsewhere.invalid/?key={KEY}"})) as endpoint:
            backend = client(endpoint.base_url)
            try:
                await backend.complete(PLAIN)
            except BackendError as problem:
                return (
                    "".join(traceback.format_exception(problem)) + repr(problem) + repr(backend) + str(backend.adapted)
                )
            finally:
                await backend.aclose()
            raise AssertionError("an error was expected")

    text = asyncio.run(main())
    assert "backends/openai.py" in text
    for start in range(len(KEY) - 5):
        assert KEY[start : start + 6] not in text


@pytest.mark.parametrize("key", ["", "  ", "sk-smart“quote”", "sk-two\nlines", "sk-\x00nul"])
def test_a_key_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(WrongKey) as caught:
        OpenAIBackend("m", name="m", base_url="http://127.0.0.1:9/v1", api_key=key, capabilities=Capabilities())
    assert key.strip() == "" or key not in str(caught.value)


def test_blanks_around_the_key_do_no_harm() -> None:
    async def main() -> str:
        async with Endpoint(chat("ok")) as endpoint:
            backend = OpenAIBackend(
                "m", name="m", base_url=endpoint.base_url, api_key=f" {KEY}\n", capabilities=Capabilities()
            )
            await backend.complete(PLAIN)
            await backend.aclose()
            return endpoint.requests[0].headers["authorization"]

    assert asyncio.run(main()) == f"Bearer {KEY}"


# The address


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://host/v1", "http://", "/v1", "http://[::1/v1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        client(address)


@pytest.mark.parametrize("given", [None, ""])
def test_without_an_address_the_environments_then_openais(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        return repr(OpenAIBackend("m", name="m", base_url=given, api_key=KEY, capabilities=EVERYTHING))

    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert "base_url='https://api.openai.com/v1'" in shown()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://somebody:password@127.0.0.1:8000/v1/")
    assert "base_url='http://127.0.0.1:8000/v1'" in shown()
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
    with pytest.raises(ConfigError, match="not an address"):
        shown()


def test_a_proxy_of_the_environment_does_not_hide_a_local_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert answer(chat("direct")).text == "direct"


def test_a_proxy_of_the_environment_is_used_for_the_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> str:
        async with Endpoint(chat("by way of the proxy")) as proxy:
            for name in ("HTTP_PROXY", "http_proxy"):
                monkeypatch.setenv(name, proxy.base_url.removesuffix("/v1"))
            backend = client("http://llm.invalid/v1")
            completion = await backend.complete(PLAIN)
            await backend.aclose()
            assert proxy.requests[0].path == "http://llm.invalid/v1/chat/completions"
            return completion.text

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert asyncio.run(main()) == "by way of the proxy"


def test_a_broken_proxy_variable_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "nonsense://x")
    with pytest.raises(ConfigError, match="proxy"):
        client("http://llm.invalid/v1")
