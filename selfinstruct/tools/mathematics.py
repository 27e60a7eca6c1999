"""The calculator and the equation solver: `grammar` reads, a process of its own computes (`algebra`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfinstruct.tools.grammar import BadExpression, parse_expression, parse_system
from selfinstruct.tools.tool import Tool, failure, text_parameters
from selfinstruct.tools.worker import Workers
from selfinstruct.values import ToolResult


def calculator(*, processes: int = 2, seconds: float = 10.0, megabytes: int = 512) -> Tool:
    """Arithmetic, exact and in decimals; complex numbers, roots, logarithms, trigonometry."""
    workers = Workers(processes, seconds=seconds, megabytes=megabytes)

    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        try:
            tree = parse_expression(arguments["expression"])
        except BadExpression as error:
            return failure(error.reason, error.detail)
        return await _result(workers, {"job": "calculate", "tree": tree})

    return Tool(
        name="calculator",
        title="Calculator",
        api="Calculate",
        description="Computes the value of an arithmetic expression, exactly and in decimals.",
        parameters=text_parameters(expression="Arithmetic such as (1200 - 90) * 0.85 or sqrt(2)^3; no units."),
        run=run,
        close=workers.aclose,
        timeout=None,
    )


def solver(*, processes: int = 2, seconds: float = 10.0, megabytes: int = 512) -> Tool:
    """Equations and systems of equations, exact and in decimals, with complex solutions."""
    workers = Workers(processes, seconds=seconds, megabytes=megabytes)

    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        try:
            system = parse_system(arguments["equation"])
        except BadExpression as error:
            return failure(error.reason, error.detail)
        equations = [(equation.left, equation.right) for equation in system.equations]
        job = {"job": "solve", "equations": equations, "names": system.names, "unknowns": system.unknowns}
        return await _result(workers, job)

    return Tool(
        name="solver",
        title="Equation solver",
        api="Solve",
        description="Solves an equation or a system of equations.",
        parameters=text_parameters(equation="Equations separated by ';', such as x + y = 30; x - y = 8."),
        run=run,
        close=workers.aclose,
        style="lines",
        timeout=None,
    )


async def _result(workers: Workers, job: Mapping[str, Any]) -> ToolResult:
    answer = await workers.compute(job)
    if "reason" in answer:
        return failure(answer["reason"], answer["detail"])
    return ToolResult(answer["text"], values=tuple(answer["values"]))
