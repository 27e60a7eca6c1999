"""The OpenAI wire format, without a wire: requests to JSON, JSON to completions and errors.

Pure functions, so that a live client and a batch file read the same bodies the same way. Shapes
accepted beyond OpenAI's own were seen in the servers named where they are read: llama.cpp, vLLM,
Ollama, DeepSeek, Mistral, OpenRouter, Gemini's compatible endpoint.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

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
from selfinstruct.values import Capabilities, Completion, Message, Request, ToolCall, Usage

LLAMA_SAMPLING = ("min_p", "top_k", "repeat_penalty", "repeat_last_n")

_NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
_NO_MODEL = {"model_not_found", "invalid_model", "model_not_exist"}
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}
_UNSUPPORTED = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden"}

# For servers that give no code: DeepSeek and OpenRouter name no model-not-found code, vLLM and
# Mistral none for the context, Groq and vLLM none for an unknown parameter.
_SAYS_NO_MODEL = re.compile(
    r"\bmodel\b[\s:'\"`]*[^\s'\"`]*['\"`]?\s+(does not|not) exist"
    r"|\bmodel\b[\s:'\"`]*[^\s'\"`]*['\"`]?\s+((was|is) )?not found|not a valid model",
    re.I,
)
_SAYS_TOO_LONG = re.compile(r"context (length|window|size)|prompt is too long|maximum context", re.I)
_SAYS_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown (name|parameter|field|argument)|extra (inputs|fields)"
    r"|not permitted|not allowed|unavailable",
    re.I,
)
_SAYS_TOO_LARGE = re.compile(r"request too large", re.I)

# What a server may do without; the limit on tokens is only ever renamed, since budgets rest on it.
_OPTIONAL = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "seed",
    "logprobs",
    "response_format",
    "json_schema",
    *LLAMA_SAMPLING,
)
RENAMED = {"max_tokens": "max_completion_tokens"}


def clean(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates as U+FFFD, so that it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def estimate_tokens(text: str) -> int:
    """Return about how many tokens `text` is: one for three bytes of UTF-8.

    On the high side for English prose (four characters a token in OpenAI's help pages), about
    right for scripts of three bytes a character under byte-level BPE, which gives them one token
    a character or a little less.
    """
    return len(text.encode("utf-8", "surrogatepass")) // 3 + 1


def estimate_prompt_tokens(request: Request) -> int:
    """Return about how many tokens the prompt of `request` is; four a message for the chat template."""
    if request.prompt is not None:
        return estimate_tokens(request.prompt)
    return sum(4 + estimate_tokens(m.content) + sum(estimate_tokens(c.arguments) for c in m.tool_calls)
               for m in request.messages)  # fmt: skip


def encode(request: Request, model: str, capabilities: Capabilities) -> tuple[str, dict[str, Any]]:
    """Return the path below the base URL and the JSON body that ask `request`.

    Only what `capabilities` declares is sent. `thoughts` have no place in this format and stay here.

    Raises:
        RequestRefused: the request can't be said in this format.
    """
    sampling = request.sampling
    body: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens}
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        if (value := getattr(sampling, name)) is not None:
            body[name] = value
    if sampling.stop:
        body["stop"] = [clean(text) for text in sampling.stop]
    if request.seed is not None and capabilities.seed:
        body["seed"] = request.seed
    if capabilities.llama_sampling:
        body |= {name: value for name in LLAMA_SAMPLING if (value := getattr(sampling, name)) is not None}
    schema = _schema(request.schema) if request.schema and capabilities.json_schema else None
    wants_logprobs = sampling.logprobs and capabilities.logprobs

    if request.prompt is not None:
        if not capabilities.completions:
            raise RequestRefused(
                "this backend takes chat messages, not a raw prompt: use a chat recipe, or set the backend's "
                "`completions` capability if the server has /completions"
            )
        body["prompt"] = clean(request.prompt)
        if wants_logprobs:
            body["logprobs"] = 1
        if schema is not None:
            body["json_schema"] = schema  # llama.cpp ignores response_format on /completions
        return "/completions", body

    if not request.messages:
        raise RequestRefused("the request has neither messages nor a prompt")
    body["messages"] = [_message(message) for message in request.messages]
    if wants_logprobs:
        body["logprobs"] = True
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "record", "strict": True, "schema": schema},
        }
    return "/chat/completions", body


def decode(content: bytes, request: Request, *, secret: str = "") -> Completion:
    """Return the completion in `content`, the body of an answer with status 200.

    `secret` is kept out of error messages.

    Raises:
        BadReply: it is not a completion.
        BackendError: it is an error under status 200, as OpenRouter sends them; of the class its code stands for.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise BadReply(f"expected a JSON completion, got {_excerpt(content, secret)}", status=200) from None
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        if isinstance(body, dict) and body.get("error"):
            raise fault(200, {}, content, secret=secret)
        raise BadReply(f"expected a completion with choices, got {_excerpt(content, secret)}", status=200)
    if isinstance(choice.get("error"), dict):
        raise fault(200, {}, json.dumps(choice).encode(), secret=secret)

    finish_reason = _string(choice.get("finish_reason"))
    reasoning = ""
    calls: tuple[ToolCall, ...] = ()
    if request.prompt is not None:
        text, legitimate = choice.get("text"), False
    else:
        message = choice.get("message")
        if not isinstance(message, dict):
            raise BadReply(f"expected a choice with a message, got {_excerpt(content, secret)}", status=200)
        text, reasoning = _content(message)
        calls = _tool_calls(message.get("tool_calls"))
        legitimate = bool(calls or reasoning or message.get("refusal"))
    if not isinstance(text, str):
        if not legitimate and finish_reason not in ("length", "content_filter"):
            raise BadReply(f"expected text in the choice, got {_excerpt(content, secret)}", status=200)
        text = ""
    text = clean(text)
    return Completion(
        text=text,
        finish_reason=finish_reason,
        usage=_usage(body.get("usage"), request, text, reasoning),
        model=_string(body.get("model")),
        logprob=_logprob(choice.get("logprobs")),
        reasoning=reasoning,
        tool_calls=calls,
    )


def fault(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    model: str = "",
    url: str = "the server",
    secret: str = "",
) -> BackendError:
    """Return the error that an answer without a completion stands for.

    `url` names who answered, `secret` is kept out of the message.
    """
    complaint = _complaint(content)
    names = {complaint.code.lower(), complaint.type.lower()}
    if status == 200 and complaint.code.isdigit() and 400 <= int(complaint.code) < 600:
        status = int(complaint.code)  # OpenRouter: the upstream's status is the code
    said = f"{url} answered {status}: {_excerpt(complaint.message or content, secret)}"
    wait = retry_after(headers)

    if names & _NO_CREDIT or status == 402:
        return QuotaExhausted(f"the account has no credit left; add some, then resume. {said}", status=status)
    if names & _NO_MODEL or (status in (400, 422) and _SAYS_NO_MODEL.search(complaint.message)):
        return UnknownModel(f"there is no model {model!r} for this key; check --model. {said}", status=status)
    if status in (401, 403):
        return WrongKey(
            "the API key is refused; put the right one into the environment variable that --api-key-env names "
            f"(OPENAI_API_KEY unless you chose another). {said}",
            status=status,
        )
    if status in (404, 405, 410):
        return UnknownModel(
            f"there is no model {model!r}, or --base-url is wrong (it usually ends in /v1). {said}", status=status
        )
    if 300 <= status < 400:
        target = _excerpt(headers.get("location", "nowhere"), secret)
        return AccessDenied(f"{url} redirects to {target}: give the final address as --base-url", status=status)
    if names & _TOO_LONG or (status in (400, 413, 422) and _SAYS_TOO_LONG.search(complaint.message)):
        return ContextTooLong(f"prompt and max_tokens do not fit the model's context. {said}", status=status)
    if status == 429 and _SAYS_TOO_LARGE.search(complaint.message):
        return RequestRefused(f"this one request is above the account's tokens per minute. {said}", status=status)
    if status == 429 or "rate_limit_exceeded" in names:
        return RateLimited(f"too many requests. {said}", status=status, retry_after=wait)
    if status == 200:
        return BadReply(f"an error under status 200. {said}", status=status)
    if status in (408, 409, 425) or (status >= 500 and status != 501):
        return Unavailable(f"the server can't answer at the moment. {said}", status=status, retry_after=wait)
    return RequestRefused(f"the server refuses this request. {said}", status=status)


def unsupported_parameter(content: bytes, sent: Collection[str]) -> str | None:
    """Return which of the parameters in `sent` a 400 or 422 says the server does not know, or None."""
    complaint = _complaint(content)
    said = complaint.message
    if not ({complaint.code, complaint.type} & _UNSUPPORTED or _SAYS_UNSUPPORTED.search(said)):
        return None
    if "invalid schema" in said.lower():
        return None  # the schema's fault, not the parameter's: others may pass
    known = [name for name in (*RENAMED, *_OPTIONAL) if name in sent]
    if complaint.param in known:
        return complaint.param
    return next((name for name in known if re.search(rf"(?<![\w-]){name}(?![\w-])", said)), None)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return how many seconds the server asks to wait, or None when it does not say.

    Reads `retry-after-ms`, `retry-after` (seconds or an HTTP date, RFC 9110 10.2.3) and, in their
    absence, `x-ratelimit-reset-*` of whatever has run out (OpenAI's rate limit guide: "1s", "6m0s").
    `headers` looks names up in any case; `now` is Unix time.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            asked = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(asked):
            return max(0.0, asked)
    if date := headers.get("retry-after"):
        try:
            moment = email.utils.parsedate_to_datetime(date).timestamp()
            return max(0.0, moment - (time.time() if now is None else now))
        except (ValueError, OverflowError):
            pass  # neither a number nor a date: the same as saying nothing
    resets = [
        seconds
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
        and (seconds := _duration(headers.get(f"x-ratelimit-reset-{what}", ""))) is not None
    ]
    return max(resets, default=None)


def _duration(text: str) -> float | None:
    """Return the seconds in "6m0s", "120ms" or "1.5s", or None."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|[dhms]))+", text):
        return None
    return sum(float(n) * units[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|[dhms])", text))


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"the request's schema is not JSON ({error})") from None


def _message(message: Message) -> dict[str, Any]:
    content = clean(message.content)
    row: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        row["content"] = content or None
        row["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": clean(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        row["tool_call_id"] = message.tool_call_id
    return row


def _content(message: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return text and reasoning; Mistral gives a list of parts, others `reasoning_content` or `reasoning`."""
    content = message.get("content")
    reasoning = _string(message.get("reasoning_content")) or _string(message.get("reasoning"))
    if not isinstance(content, list):
        return (content if isinstance(content, str) else None), reasoning
    parts = [part for part in content if isinstance(part, dict)]
    for part in parts:
        inner = part.get("thinking")
        for piece in inner if isinstance(inner, list) else [{"text": inner}]:
            reasoning += _string(piece.get("text")) if isinstance(piece, dict) else ""
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return ("".join(texts) if texts else None), reasoning


def _tool_calls(rows: object) -> tuple[ToolCall, ...]:
    calls = []
    for row in rows if isinstance(rows, list) else []:
        function = row.get("function") if isinstance(row, dict) else None
        if isinstance(function, dict):
            arguments = function.get("arguments")
            text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
            calls.append(ToolCall(_string(function.get("name")), clean(text), _string(row.get("id"))))
    return tuple(calls)


def _usage(row: object, request: Request, text: str, reasoning: str) -> Usage:
    """Return the server's count, filled up with estimates where it is missing or can't be true."""
    usage = row if isinstance(row, dict) else {}
    said = text + reasoning
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if completion == 0 and said:
        completion = None
    return Usage(
        prompt or estimate_prompt_tokens(request),
        completion if completion is not None else (estimate_tokens(said) if said else 0),
        estimated=not prompt or completion is None,
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _logprob(row: object) -> float | None:
    """Return the mean log-probability, from chat's list of objects (llama.cpp: everywhere) or the classic one."""
    if not isinstance(row, dict):
        return None
    content = row.get("content")
    tokens = [t.get("logprob") for t in content if isinstance(t, dict)] if isinstance(content, list) else []
    classic = row.get("token_logprobs")
    if not tokens and isinstance(classic, list):
        tokens = classic
    values = [float(t) for t in tokens if isinstance(t, int | float) and not isinstance(t, bool) and math.isfinite(t)]
    return sum(values) / len(values) if values else None


def _string(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class _Complaint:
    """What an error body says, whichever of its shapes it has."""

    message: str
    code: str = ""
    type: str = ""
    param: str = ""


def _complaint(content: bytes) -> _Complaint:
    text = content.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return _Complaint(text.strip())
    if isinstance(body, list) and body:
        body = body[0]  # Gemini wraps the object in a list
    if not isinstance(body, dict):
        return _Complaint(text.strip())
    error = body.get("error") or body.get("detail") or body  # FastAPI says "detail", old vLLM is the object itself
    if isinstance(error, list) and error and isinstance(error[0], dict):
        first = error[0]  # pydantic's list: the parameter is the last of "loc"
        where = first.get("loc")
        param = str(where[-1]) if isinstance(where, list) and where else ""
        return _Complaint(f"{param}: {first.get('msg', text)}", type=str(first.get("type", "")), param=param)
    if not isinstance(error, dict):
        return _Complaint(_string(error) or text.strip())
    message = _string(error.get("message")) or text.strip()
    rest = (error.get(name) for name in ("code", "type", "param"))
    return _Complaint(message, *("" if value is None else clean(str(value)) for value in rest))


def _excerpt(said: bytes | str, secret: str) -> str:
    """Return the start of what a server said, quoted, on one line, without the key."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    if secret:
        text = text.replace(secret, "[API key]")
    text = " ".join(text.split())
    if not text:
        return "an empty body"
    return json.dumps(clean(text if len(text) <= 300 else text[:300] + "..."), ensure_ascii=False)
