r"""Self-Instruct's five files and its GPT-3 fine-tune file (yizhongw/self-instruct 0b26cca).

Only the task file is a whole task. The others are the pipeline's working files: instructions without
instances, the model's word on classification, instances as the model wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats import alpaca
from selfinstruct.formats.format import Format, Row, fields, has, identity, items, kind, rest, strings, text
from selfinstruct.values import Instance, Record, Task

END_OF_TEXT = "<|endoftext|>"
_INSTRUCTION_KEYS = ("most_similar", "avg_similarity_score", "metadata", "request_idx")
_RAW_KEYS = ("instance_metadata", "instruction_metadata", "most_similar", "avg_similarity_score")


def decode(row: Row) -> list[Record]:
    """Read one line of a seed or task file.

    Raises:
        InputError: the instruction or an instance is not of the right shape.
    """
    row = fields(row)
    verdict = row.get("is_classification")
    if verdict is not None and not isinstance(verdict, bool):
        raise InputError(f'"is_classification" must be true or false, found {kind(verdict)}')
    instances = tuple(
        Instance(text(fields(entry), "input", ""), text(fields(entry), "output")) for entry in items(row, "instances")
    )
    return [Task(text(row, "instruction"), instances, verdict, identity(row, "id"), text(row, "name", ""))]


def encode(task: Task) -> list[Row]:
    """Write one line of a task file; id, name and is_classification only when known."""
    row: dict[str, Any] = {}
    if task.id:
        row["id"] = task.id
    if task.name:
        row["name"] = task.name
    row["instruction"] = _instruction(task)
    row["instances"] = [{"input": instance.input, "output": instance.output} for instance in task.instances]
    if task.is_classification is not None:
        row["is_classification"] = task.is_classification
    return [row]


def _instruction(task: Task) -> str:
    if not task.instruction.strip():
        raise InputError("the instruction is empty")
    return task.instruction


def _decode_instruction(row: Row) -> list[Record]:
    row = fields(row)
    return [Task(text(row, "instruction"), extra=rest(row, *_INSTRUCTION_KEYS))]


def _encode_instruction(task: Task) -> list[Row]:
    if task.instances:
        raise InputError("a file of bare instructions can't hold instances")
    return [{"instruction": _instruction(task)} | rest(task.extra, *_INSTRUCTION_KEYS)]


def verdict(answer: str) -> bool:
    """Read the classification answer as `prepare_for_finetuning.py` does: only a bare yes is a yes."""
    return answer.strip() in {"Yes", "yes", "YES"}


def _decode_classification(row: Row) -> list[Record]:
    row = fields(row)
    answer = text(row, "is_classification")
    is_classification = verdict(answer)
    extra = {} if answer == _answer(is_classification) else {"is_classification": answer}
    return [Task(text(row, "instruction"), is_classification=is_classification, extra=extra)]


def _answer(is_classification: bool) -> str:
    return " Yes" if is_classification else " No"


def _encode_classification(task: Task) -> list[Row]:
    if task.instances:
        raise InputError("a file of classification answers can't hold instances")
    if task.is_classification is None:
        raise InputError("is_classification is not known")
    raw = task.extra.get("is_classification")
    answer = raw if isinstance(raw, str) and verdict(raw) == task.is_classification else _answer(task.is_classification)
    return [{"instruction": _instruction(task), "is_classification": answer}]


_EXAMPLE_LINE = re.compile(r"^\s*Example \d*\.?[ \t]*$", re.MULTILINE)
_INPUT_FIRST = re.compile(r"\A\s*(?:Input:(?P<input>.*?))?^\s*Output:(?P<output>.*)\Z", re.DOTALL | re.MULTILINE)


def parse_instances(raw: str) -> tuple[Instance, ...]:
    """Read the instances of one `raw_instances` text: "Class label:" blocks, else "Input:/Output:" blocks.

    Blocks without a marker hold no instance (`prepare_for_finetuning.py`, parse rules of the paper's step 4).
    """
    found: list[Instance] = []
    if "Class label:" in raw:
        for block in raw.split("Class label:")[1:]:
            label, _, given = block.strip().partition("\n")
            found.append(Instance(given.strip(), label.strip()))
        return tuple(found)
    for block in _EXAMPLE_LINE.split(raw):
        if match := _INPUT_FIRST.match(block):
            found.append(Instance((match["input"] or "").strip(), match["output"].strip()))
    return tuple(found)


def _decode_raw_instances(row: Row) -> list[Record]:
    row = fields(row)
    raw = text(row, "raw_instances")
    extra = {"raw_instances": raw} | rest(row, *_RAW_KEYS)
    instances = parse_instances(raw)
    if raw == _raw(instances, "Class label:" in raw):
        del extra["raw_instances"]
    return [Task(text(row, "instruction"), instances, "Class label:" in raw if instances else None, extra=extra)]


def _raw(instances: tuple[Instance, ...], is_classification: bool) -> str:
    if is_classification:
        return "\n".join(
            f"Class label: {instance.output}" + (f"\n{instance.input}" if instance.input else "")
            for instance in instances
        )
    return "\n".join(
        f"Example {index}\n" + (f"Input: {instance.input}\n" if instance.input else "") + f"Output: {instance.output}"
        for index, instance in enumerate(instances, 1)
    )


def _encode_raw_instances(task: Task) -> list[Row]:
    kept = task.extra.get("raw_instances")
    if isinstance(kept, str) and parse_instances(kept) == task.instances:
        raw = kept
    else:
        raw = _raw(task.instances, bool(task.is_classification))
    return [{"instruction": _instruction(task), "raw_instances": raw} | rest(task.extra, *_RAW_KEYS)]


def _decode_gpt3(row: Row) -> list[Record]:
    row = fields(row)
    completion = text(row, "completion").removesuffix(END_OF_TEXT)
    prompt = text(row, "prompt")
    spaced = prompt.rstrip().endswith("Output:") and completion.startswith(" ")
    return [Task(prompt, (Instance("", completion[1:] if spaced else completion),))]


def _encode_gpt3(task: Task) -> list[Row]:
    rows = []
    for instance in alpaca.answered(task):
        if instance.input:
            raise InputError("a prompt has no separate input: render the task with a template first")
        lead = " " if task.instruction.rstrip().endswith("Output:") else ""
        rows.append({"prompt": task.instruction, "completion": f"{lead}{instance.output}{END_OF_TEXT}"})
    return rows


def _matches_gpt3(row: Row) -> int:
    return 3 * (strings(row, "prompt", "completion") and row["completion"].endswith(END_OF_TEXT))


def _only(*wanted: str, never: tuple[str, ...] = (), score: int = 2) -> Callable[[Mapping[str, Any]], int]:
    return lambda row: score * (has(row, *wanted) and not any(key in row for key in never))


_REPO = "yizhongw/self-instruct "
_SEED = Task(
    "Decide whether the review is positive.",
    (Instance("I loved every page.", "positive"),),
    is_classification=True,
    id="seed_task_0",
    name="sentiment",
)

FORMATS = (
    Format(
        name="self-instruct",
        summary="Self-Instruct tasks: JSONL of id, name, instruction, instances, is_classification",
        source=_REPO + "data/seed_tasks.jsonl; LianjiaTech/BELLE zh_seed_tasks.json",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("id", "name", "instruction", "instances", "instances.input", "instances.output", "is_classification"),
        decode=decode,
        encode=encode,
        matches=lambda row: 3 * (strings(row, "instruction") and isinstance(row.get("instances"), list)),
        example=_SEED,
        works="instruction not empty; every instance has input and output",
    ),
    Format(
        name="self-instruct-instructions",
        summary="Step 1: instructions without instances, with their nearest neighbours",
        source=_REPO + "bootstrap_instructions.py: machine_generated_instructions.jsonl",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("instruction", *_INSTRUCTION_KEYS),
        decode=_decode_instruction,
        encode=_encode_instruction,
        matches=lambda row: (
            (2 + has(row, "request_idx"))
            * _only(
                "instruction",
                never=(
                    "output",
                    "instances",
                    "raw_instances",
                    "response",
                    "is_classification",
                    "target",
                    "chosen",
                    "conversations",
                ),
                score=1,
            )(row)
        ),
        example=Task("Write a haiku about snow.", extra={"most_similar": {"Write a poem.": 0.5}, "request_idx": 0}),
        works="instruction not empty; no instances",
    ),
    Format(
        name="self-instruct-classification",
        summary="Step 2: the model's raw answer whether the task is a classification",
        source=_REPO + "identify_clf_or_not.py: is_clf_or_not_*.jsonl",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("instruction", "is_classification"),
        decode=_decode_classification,
        encode=_encode_classification,
        matches=lambda row: 3 * (strings(row, "instruction", "is_classification") and not has(row, "instances")),
        example=Task("Is this review positive?", is_classification=True),
        works="is_classification known; no instances",
    ),
    Format(
        name="self-instruct-raw-instances",
        summary="Step 3: instances as the model wrote them (input-first or output-first)",
        source=_REPO + "generate_instances.py: machine_generated_instances.jsonl",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("instruction", "raw_instances", *_RAW_KEYS),
        decode=_decode_raw_instances,
        encode=_encode_raw_instances,
        matches=lambda row: 4 * strings(row, "instruction", "raw_instances"),
        example=Task("Sort the numbers.", (Instance("3, 1, 2", "1, 2, 3"),), is_classification=False),
        works="every instance reads back from its markers",
    ),
    Format(
        name="self-instruct-instances",
        summary="Step 4: JSONL of instruction, input, output",
        source=_REPO + "prepare_for_finetuning.py: all_generated_instances.jsonl",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("instruction", "input", "output"),
        decode=alpaca.decode,
        encode=alpaca.encode,
        matches=alpaca.plain,
        example=Task("Sort the numbers.", (Instance("3, 1, 2", "1, 2, 3"),)),
        works="exactly three string keys; instruction and output not empty",
    ),
    Format(
        name="self-instruct-gpt3",
        summary="GPT-3 fine-tune file: JSONL of prompt, completion ending with the end-of-text marker",
        source=_REPO + "prepare_for_finetuning.py: gpt3_finetuning_data",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("prompt", "completion"),
        decode=_decode_gpt3,
        encode=_encode_gpt3,
        matches=_matches_gpt3,
        example=Task("Task: Sort the numbers 3, 1, 2.\nOutput:", (Instance("", "1, 2, 3"),)),
        works="no separate input; the completion starts with a space after a prompt that ends in Output:",
    ),
)
