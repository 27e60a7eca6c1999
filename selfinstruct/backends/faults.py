"""What an endpoint says instead of a completion: error bodies of any shape to our errors.

Pure functions. Shapes accepted beyond OpenAI's own were seen in the servers named where they are read.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

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

# Codes and types, lower case. Of OpenAI and llama.cpp, where not said. Numbers: GLM, docs.bigmodel.cn/cn/api/api-code.
# arrearage: Alibaba Model Studio. billing_insufficient_balance, characters_too_long, tokens_too_long: Baidu Qianfan.
_NO_CREDIT = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_balance",
    "billing_insufficient_balance",
    "arrearage",
    "1113",
}
_NO_MODEL = {"model_not_found", "invalid_model", "1211"}
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error", "tokens_too_long", "characters_too_long", "1261"}
_UNSUPPORTED = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden"}

# For servers that give no code: Kimi's 403 for the balance, DeepSeek and OpenRouter for the model, vLLM, Mistral and
# Alibaba Model Studio for the context, Groq and vLLM for an unknown parameter.
_SAYS_NO_CREDIT = re.compile(r"insufficient (account )?balance|credit balance", re.I)
# Alibaba says insufficient_quota, in OpenAI's words, for tokens per minute: help.aliyun.com/en/model-studio/rate-limit.
_MINUTES_QUOTA = re.compile(r"allocated quota|aliyun|alibabacloud", re.I)
_SAYS_NO_MODEL = re.compile(
    r"\bmodel\b[\s:'\"`]*[^\s'\"`]*['\"`]?\s+(does not|not) exist"
    r"|\bmodel\b[\s:'\"`]*[^\s'\"`]*['\"`]?\s+((was|is) )?not found|not a valid model",
    re.I,
)
_SAYS_TOO_LONG = re.compile(
    r"context (length|window|size)|prompt is too long|maximum context|range of input length", re.I
)
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
    "min_p",
    "top_k",
    "repeat_penalty",
    "repeat_last_n",
)
_PLAUSIBLE = 7 * 86400.0  # seconds; a longer wait is a mistake, such as a date in Unix time
RENAMED = {"max_tokens": "max_completion_tokens"}


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
    if status == 200 and re.fullmatch(r"[45][0-9][0-9]", complaint.code):
        status = int(complaint.code)  # OpenRouter: the upstream's status is the code
    said = f"{url} answered {status}: {excerpt(complaint.message or content, secret)}"
    wait = retry_after(headers)

    names_no_credit = names & _NO_CREDIT and not (status == 429 and _MINUTES_QUOTA.search(complaint.message + url))
    if names_no_credit or status == 402 or (status in (400, 403, 429) and _SAYS_NO_CREDIT.search(complaint.message)):
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
        target = excerpt(headers.get("location", "nowhere"), secret)
        return AccessDenied(f"{url} redirects to {target}: give the final address as --base-url", status=status)
    if names & _TOO_LONG or (status in (400, 413, 422) and _SAYS_TOO_LONG.search(complaint.message)):
        return ContextTooLong(
            "prompt and max_tokens do not fit the model's context: --set sampling.max_tokens=N asks for shorter "
            f"answers, --set backend.context=N gives an embedded model more room. {said}",
            status=status,
        )
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
    More than a week is not believed.
    `headers` looks names up in any case; `now` is Unix time.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            asked = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if asked <= _PLAUSIBLE:
            return max(0.0, asked)
    if date := headers.get("retry-after"):
        try:
            moment = email.utils.parsedate_to_datetime(date).timestamp()
            asked = max(0.0, moment - (time.time() if now is None else now))
        except (ValueError, OverflowError):
            asked = math.inf  # neither a number nor a date: the same as saying nothing
        if asked <= _PLAUSIBLE:
            return asked
    resets = [
        seconds
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
        and (seconds := _duration(headers.get(f"x-ratelimit-reset-{what}", ""))) <= _PLAUSIBLE
    ]
    return max(resets, default=None)


def _duration(text: str) -> float:
    """Return the seconds in "6m0s", "120ms" or "1.5s", infinite for anything else."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|[dhms]))+", text):
        return math.inf
    return sum(float(n) * units[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|[dhms])", text))


def clean(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates as U+FFFD, so that it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def excerpt(said: bytes | str, secret: str) -> str:
    """Return the start of what a server said, quoted, on one line, without the key."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    if secret:
        text = text.replace(secret, "[API key]")
    text = " ".join(text.split())
    if not text:
        return "an empty body"
    return json.dumps(clean(text if len(text) <= 300 else text[:300] + "..."), ensure_ascii=False)


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
        return _Complaint((clean(error) if isinstance(error, str) else "") or text.strip())
    message = (clean(said) if isinstance(said := error.get("message"), str) else "") or text.strip()
    rest = (error.get(name) for name in ("code", "type", "param"))
    return _Complaint(message, *("" if value is None else clean(str(value)) for value in rest))
