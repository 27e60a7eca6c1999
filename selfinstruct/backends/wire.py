"""The OpenAI wire format, without a wire: requests to JSON, JSON to completions.

Pure functions, so that a live client and a batch file read the same bodies the same way. Shapes
accepted beyond OpenAI's own were seen in the servers named where they are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from selfinstruct.backends.faults import clean, excerpt, fault
from selfinstruct.errors import BadReply, RequestRefused
from selfinstruct.values import Capabilities, Completion, Message, Request, ToolCall, Usage

LLAMA_SAMPLING = ("min_p", "top_k", "repeat_penalty", "repeat_last_n")


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
    schema = _json(request.schema, "schema") if request.schema and capabilities.json_schema else None
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
    if request.tools and capabilities.tools:
        body["tools"] = _json(request.tools, "tools")
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
        page = content.lstrip().startswith(b"<")
        hint = "; that is a web page: is --base-url right (it usually ends in /v1)?" if page else ""
        raise BadReply(f"expected a JSON completion, got {excerpt(content, secret)}{hint}", status=200) from None
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        if isinstance(body, dict) and body.get("error"):
            raise fault(200, {}, content, secret=secret)
        raise BadReply(f"expected a completion with choices, got {excerpt(content, secret)}", status=200)
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
            raise BadReply(f"expected a choice with a message, got {excerpt(content, secret)}", status=200)
        text, reasoning = _content(message)
        calls = _tool_calls(message.get("tool_calls"))
        legitimate = bool(calls or reasoning or message.get("refusal"))
    if not isinstance(text, str):
        if not legitimate and finish_reason not in ("length", "content_filter"):
            raise BadReply(f"expected text in the choice, got {excerpt(content, secret)}", status=200)
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


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"the request's {what} is not JSON ({error})") from None


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
        if message.name:
            row["name"] = message.name
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
