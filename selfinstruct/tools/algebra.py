"""The process that computes: trees of `grammar` in, numbers out, with sympy.

Started by `selfinstruct.tools.worker` as a plain script; it imports nothing of this package. The first line on stdin
is its settings as JSON, every other line a job. The first line on stdout is `{"ready"}`, every other an answer:
`{"text", "values"}`, or `{"reason", "detail"}` when there is none. No text of a model gets here, only trees of known
operations, and each operation is measured before it is carried out: a tower of powers is refused, not tried.

It lives for as long as stdin stays open, so it can't outlive its parent however that ends.
"""

from __future__ import annotations

import decimal
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sympy
from sympy.printing.str import StrPrinter

Expr = Any
Tree = list[Any]
Job = Mapping[str, Any]

MAX_BITS = 34_000
"""Of a whole number on the way: about 10,000 digits."""
MAX_DIGITS = 1000
"""Of a whole number shown."""
MAX_EXACT = 40
"""Characters of an exact form; a longer one is shown as a decimal alone."""
MAX_SOLUTIONS = 20
SIGNIFICANT = 15
"""Digits of a decimal."""

_GUARD = 30  # digits that are computed, of which SIGNIFICANT are shown
_MAX_POWER = 60  # of an unknown
_MAX_OPERATIONS = 80  # of an expression that is worth simplifying
_MAX_NESTING = 4  # of functions inside of functions: sympy's simplify takes time exponential in it
_MAX_TERMS = 5000  # of an expression when it is multiplied out
_SYMBOLIC = frozenset({"sqrt", "abs", "exp", "ln", "log", "log2", "log10", "sin", "cos", "tan", "cot", "sec", "csc",
                       "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"})  # fmt: skip


class Refused(Exception):
    """There is no answer; `reason` is short and stable."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def calculate(tree: Tree) -> dict[str, Any]:
    """Return the value of a tree without unknowns: `text` as shown, `values` with its exact form."""
    text, value = _shown(_build(tree))
    return {"text": text, "values": [value]}


def solve(equations: Sequence[tuple[Tree, Tree]], names: Sequence[str], unknowns: Sequence[str]) -> dict[str, Any]:
    """Return all solutions of a system, in the complex numbers where it is polynomial, else in the real ones.

    `names` are all that occur, `unknowns` those asked for (none: all). `text` has one `x = 26` per line, or says that
    there is no solution, or infinitely many.
    """
    pairs = [(_build(left), _build(right)) for left, right in equations]
    asked = [sympy.Symbol(name) for name in unknowns or sorted(names, key=_natural)]
    return _System(pairs, asked, {sympy.Symbol(name) for name in names} - set(asked)).answer()


# From a tree to a number


def _build(tree: Tree) -> Expr:
    kind, *parts = tree
    if kind == "number":
        return _checked(sympy.Rational(parts[0], parts[1]))
    if kind == "constant":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[parts[0]]
    if kind == "name":
        return sympy.Symbol(parts[0])
    if kind == "call":
        return _checked(_call(parts[0], [_build(part) for part in parts[1:]]))
    operands = [_build(part) for part in parts]
    if kind in ("sum", "product"):
        total = operands[0]
        for operand in operands[1:]:
            total = _checked(total + operand if kind == "sum" else total * operand)
        return total
    if kind == "negative":
        return -operands[0]
    if kind == "inverse":
        return _checked(1 / _divisor(operands[0]))
    if kind == "power":
        return _checked(_power(*operands))
    left, right = operands
    if kind == "modulo":
        return _checked(sympy.Mod(_real(left, "modulo"), _divisor(_real(right, "modulo"))))
    if kind == "floor quotient":
        return _checked(sympy.floor(_real(left, "//") / _divisor(_real(right, "//"))))
    raise Refused("syntax", str(kind))


def _checked(value: Expr) -> Expr:
    if value.is_Rational:
        if max(value.p.bit_length(), value.q.bit_length()) > MAX_BITS:
            raise Refused("too large", "a number of more than 10,000 digits")
    elif value.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        raise Refused("undefined", "")
    return value


def _divisor(value: Expr) -> Expr:
    if _is_zero(value):
        raise Refused("division by zero", "")
    return value


def _is_zero(value: Expr) -> bool:
    """Tell whether a number is 0; of unknowns nothing is known.

    Raises:
        Refused: it is nearer to 0 than can be told apart.
    """
    if value.is_Rational or value.free_symbols:
        return bool(value == 0)
    # In decimals first: sympy's own rules take exponential time on functions inside of functions.
    near = value.evalf(_GUARD, maxn=400)
    if near.is_number and not near.has(sympy.nan) and abs(near) > sympy.Float("1e-60"):
        return False
    if _nesting(value) <= _MAX_NESTING and (value.is_zero or sympy.simplify(value) == 0 or value.equals(0)):
        return True
    raise Refused("undefined", "it can't be told from 0")


def _log10(value: Expr) -> float:
    """Return log10 of the size of a number that is not 0, rough but never too far off."""
    if value.is_Rational:
        bits: int = abs(value.p).bit_length() - value.q.bit_length()
        return bits * math.log10(2)
    size = sympy.log(sympy.Abs(value.evalf(SIGNIFICANT)), 10).evalf(SIGNIFICANT)
    return float(size) if size.is_Float or size.is_Rational else 0.0


def _power(base: Expr, exponent: Expr) -> Expr:
    if base.free_symbols or exponent.free_symbols:
        if exponent.is_Rational and (abs(exponent) > _MAX_POWER or exponent.q > 2):
            raise Refused("unsupported", f"an unknown to the power of {_exact(exponent)[:20]}")
        return base**exponent
    if _is_zero(base):
        if not exponent.is_Rational and _is_zero(exponent):
            return sympy.S.One
        if not (exponent if exponent.is_Rational else _parts(_real(exponent, "power"))[0]) >= 0:
            raise Refused("division by zero", "0 to a negative power")
        return base**exponent
    if base.is_Rational and abs(base) == 1 and exponent.is_Integer:
        return sympy.S.One if base == 1 or exponent % 2 == 0 else sympy.S.NegativeOne
    if exponent.is_Integer and base.is_Rational:
        if abs(exponent) * max(abs(base.p).bit_length(), base.q.bit_length()) > MAX_BITS:
            raise Refused("too large", "a number of more than 10,000 digits")
        return base**exponent
    _bounded(abs(_log10(base)) * _size(exponent))
    if exponent.is_Integer and abs(exponent) > 1000:
        raise Refused("too large", f"a power of {_exact(exponent)[:20]}")
    return base**exponent


def _size(value: Expr) -> float:
    return 0.0 if _is_zero(value) else math.pow(10, min(_log10(value), 300.0))


def _bounded(log10: float) -> None:
    if log10 > MAX_BITS * math.log10(2):
        raise Refused("too large", "a number of more than 10,000 digits")


def _real(value: Expr, where: str) -> Expr:
    if value.free_symbols:
        raise Refused("unsupported", f"an unknown inside of {where}")
    if not value.is_Rational and _parts(value)[1] != 0:
        raise Refused("undefined", f"{where} of a complex number")
    return value


def _integer(value: Expr, where: str, least: int, most: int) -> int:
    if not _real(value, where).is_Integer or value < least:
        raise Refused("undefined", f"{where} takes whole numbers from {least} on")
    if value > most:
        raise Refused("too large", f"{where} of a number above {most}")
    return int(value)


def _call(name: str, values: list[Expr]) -> Expr:
    if name not in _SYMBOLIC and any(value.free_symbols for value in values):
        raise Refused("unsupported", f"an unknown inside of {name}")
    if name in ("exp", "sinh", "cosh") and not values[0].free_symbols:
        _bounded(_size(values[0]) * math.log10(math.e))
    if name in ("ln", "log", "log2", "log10"):
        return _logarithm(name, values)
    return _FUNCTIONS[name](*values)


def _logarithm(name: str, values: list[Expr]) -> Expr:
    base = {"log2": sympy.Integer(2), "log10": sympy.Integer(10)}.get(name) or (values[1:] or [None])[0]
    for value in values:
        if _is_zero(value):
            raise Refused("undefined", "the logarithm of 0")
    if base is None:
        return sympy.log(values[0])
    if base == 1:
        raise Refused("undefined", "a logarithm to the base 1")
    if values[0].is_Rational and base.is_Rational and values[0] > 0 and base > 0:
        exact = _whole_logarithm(values[0], base)
        if exact is not None:
            return exact
    return sympy.log(values[0]) / sympy.log(base)


def _whole_logarithm(value: Expr, base: Expr) -> Expr | None:
    near = round(float(_ln(value) / _ln(base)))
    return sympy.Integer(near) if abs(near) < MAX_BITS and base**near == value else None


def _ln(value: Expr) -> Expr:
    return sympy.log(value).evalf(SIGNIFICANT)


def _root(value: Expr, degree: Expr) -> Expr:
    """Return the real root where there is one: cbrt(-8) is -2."""
    degree = _integer(degree, "root", 1, 1000)
    real, imaginary = (value, 0) if value.is_Rational else _parts(value)
    if degree % 2 and imaginary == 0 and real < 0:
        return -_power(-value, sympy.Rational(1, degree))
    return _power(value, sympy.Rational(1, degree))


def _round(value: Expr, places: Expr = sympy.S.Zero) -> Expr:
    """Round half away from 0, as on paper."""
    value, digits = _real(value, "round"), _integer(places, "round", 0, 100)
    scaled = sympy.Abs(value) * 10**digits + sympy.Rational(1, 2)
    return sympy.sign(value) * sympy.floor(scaled) / sympy.Integer(10) ** digits


def _factorial(value: Expr) -> Expr:
    return sympy.Integer(math.factorial(_integer(value, "factorial", 0, 3000)))


def _comb(n: Expr, k: Expr) -> Expr:
    total, chosen = _integer(n, "comb", 0, 10**15), _integer(k, "comb", 0, 10**15)
    smaller = min(chosen, max(total - chosen, 0))
    if smaller * max(total, 1).bit_length() > MAX_BITS:
        raise Refused("too large", "a number of more than 10,000 digits")
    return sympy.Integer(math.comb(total, chosen))


def _perm(n: Expr, k: Expr) -> Expr:
    total, chosen = _integer(n, "perm", 0, 10**15), _integer(k, "perm", 0, 10**15)
    if min(chosen, total) * max(total, 1).bit_length() > MAX_BITS:
        raise Refused("too large", "a number of more than 10,000 digits")
    return sympy.Integer(math.perm(total, chosen))


def _whole(name: str, function: Callable[..., int]) -> Callable[..., Expr]:
    def apply(*values: Expr) -> Expr:
        for value in values:
            if not _real(value, name).is_Integer:
                raise Refused("undefined", f"{name} takes whole numbers")
        return sympy.Integer(function(*(int(value) for value in values)))

    return apply


def _least(*values: Expr) -> Expr:
    return sympy.Min(*(_real(value, "min") for value in values))


def _most(*values: Expr) -> Expr:
    return sympy.Max(*(_real(value, "max") for value in values))


_FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "sqrt": lambda x: _power(x, sympy.Rational(1, 2)),
    "cbrt": lambda x: _root(x, sympy.Integer(3)),
    "root": _root,
    "abs": sympy.Abs,
    "sign": lambda x: sympy.sign(_real(x, "sign")),
    "exp": sympy.exp,
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "asin": sympy.asin, "acos": sympy.acos, "atan": sympy.atan,
    "atan2": lambda y, x: sympy.atan2(_real(y, "atan2"), _real(x, "atan2")),
    "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh,
    "asinh": sympy.asinh, "acosh": sympy.acosh, "atanh": sympy.atanh,
    "degrees": lambda x: x * 180 / sympy.pi,
    "radians": lambda x: x * sympy.pi / 180,
    "floor": lambda x: sympy.floor(_real(x, "floor")),
    "ceil": lambda x: sympy.ceiling(_real(x, "ceil")),
    "round": _round,
    "factorial": _factorial, "comb": _comb, "perm": _perm,
    "gcd": _whole("gcd", math.gcd), "lcm": _whole("lcm", math.lcm),
    "mod": lambda a, b: sympy.Mod(_real(a, "mod"), _divisor(_real(b, "mod"))),
    "min": _least, "max": _most,
    "sum": lambda *values: sympy.Add(*values),
    "mean": lambda *values: sympy.Add(*values) / len(values),
}  # fmt: skip


# From a number to text


class _Printer(StrPrinter):  # type: ignore[misc]
    def _print_ImaginaryUnit(self, expr: Expr) -> str:
        return "i"

    def _print_Exp1(self, expr: Expr) -> str:
        return "e"


def _exact(value: Expr) -> str:
    return str(_Printer().doprint(value)).replace("**", "^")


def _shown(value: Expr) -> tuple[str, str]:
    """Return a number as it is shown, and its exact form (the decimal where there is no short one)."""
    if value.is_Rational:
        return _shown_rational(value)
    decimals = _decimals(value)
    value = _simplest(value)
    if value.is_Rational:
        return _shown_rational(value)
    exact = "" if value.has(sympy.Float) else _exact(value)
    if not exact or len(exact) > MAX_EXACT:
        return decimals, decimals
    parts = value.as_real_imag()
    if all(part.is_Rational and sympy.Rational(str(_near(part))) == part for part in parts):
        return decimals, decimals
    return f"{exact} ≈ {decimals}", exact


def _shown_rational(value: Expr) -> tuple[str, str]:
    if value.q == 1:
        if abs(value.p).bit_length() > MAX_DIGITS * math.log2(10):
            raise Refused("too large", f"a result of more than {MAX_DIGITS} digits")
        return str(value.p), str(value.p)
    exact = f"{value.p}/{value.q}"
    near = _near(value)
    if sympy.Rational(str(near)) == value:
        return _plain(near), _plain(near)
    return (f"{exact} ≈ {_plain(near)}", exact) if len(exact) <= MAX_EXACT else (_plain(near), _plain(near))


def _near(value: Expr) -> decimal.Decimal:
    """Return a real number to SIGNIFICANT digits."""
    context = decimal.Context(prec=SIGNIFICANT, Emin=-(10**9), Emax=10**9)
    if value.is_Rational:
        return context.divide(decimal.Decimal(int(value.p)), decimal.Decimal(int(value.q)))
    return context.create_decimal(str(value.evalf(_GUARD)))


def _plain(value: decimal.Decimal) -> str:
    if not value:
        return "0"
    value = value.normalize(decimal.Context(prec=SIGNIFICANT, Emin=-(10**9), Emax=10**9))
    return f"{value:f}" if -7 <= value.adjusted() < SIGNIFICANT else f"{value:e}".replace("e+", "e")


def _parts(value: Expr) -> tuple[Expr, Expr]:
    """Return the real and the imaginary part in decimals, 0 where one vanishes."""
    near = value.evalf(_GUARD, maxn=400)
    real, imaginary = near.as_real_imag()
    if not (real.is_Float or real.is_Rational) or not (imaginary.is_Float or imaginary.is_Rational):
        raise Refused("undefined", "")
    size = max(abs(real), abs(imaginary))
    return (real if abs(real) > size * 1e-25 else sympy.S.Zero), (
        imaginary if abs(imaginary) > size * 1e-25 else sympy.S.Zero
    )


def _decimals(value: Expr) -> str:
    if _is_zero(value):
        return "0"
    real, imaginary = _parts(value)
    if imaginary == 0:
        return _plain(_near(real))
    size = _plain(_near(abs(imaginary)))
    unit = "i" if size == "1" else f"{size}*i"
    if real == 0:
        return unit if imaginary > 0 else f"-{unit}"
    return f"{_plain(_near(real))} {'+' if imaginary > 0 else '-'} {unit}"


def _simplest(value: Expr) -> Expr:
    """Return the shortest of a few equal forms."""
    if value.has(sympy.Float) or sympy.count_ops(value) > _MAX_OPERATIONS or not _is_tame(value):
        return value
    forms = [value]
    for change in (sympy.expand, sympy.radsimp, sympy.sqrtdenest, sympy.simplify):
        form = change(forms[-1])
        if form.is_Rational:
            return form
        forms.append(form)
    return min(forms, key=lambda form: (len(_exact(form)), _exact(form)))


def _is_tame(value: Expr) -> bool:
    """Tell whether sympy gets along with an expression in a short time."""
    return _nesting(value) <= _MAX_NESTING and all(
        _terms(part) <= _MAX_TERMS and not (part.is_Pow and part.exp.is_Rational and part.exp.q > _MAX_POWER)
        for part in sympy.preorder_traversal(value)
    )


def _nesting(value: Expr) -> int:
    return int(value.is_Function) + max(map(_nesting, value.args), default=0)


def _terms(value: Expr) -> int:
    """Return how many terms there are when the expression is multiplied out."""
    if value.is_Add:
        return sum(map(_terms, value.args))
    if value.is_Mul:
        return math.prod(map(_terms, value.args))
    if value.is_Pow and value.exp.is_Integer:
        count, power = _terms(value.base), min(abs(int(value.exp)), _MAX_TERMS)
        return math.comb(power + count - 1, power) if count < _MAX_TERMS else count
    return 1


def _natural(name: str) -> tuple[str, int]:
    """Return the order of unknowns: x2 before x10."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)


# Equations


Solution = tuple[Expr, ...]


class _System:
    """Equations as pairs of sides, the unknowns asked for, and the names that are left as they are."""

    def __init__(self, pairs: list[tuple[Expr, Expr]], unknowns: list[Expr], parameters: set[Expr]) -> None:
        self.pairs = pairs
        self.unknowns = unknowns
        self.parameters = parameters
        self.numerators: list[Expr] = []
        self.denominators: list[Expr] = []
        for left, right in pairs:
            if not _is_tame(left) or not _is_tame(right):
                raise Refused(
                    "too large", f"more than {_MAX_TERMS} terms, a high root, or functions inside of functions"
                )
            top, bottom = sympy.fraction(sympy.together(left - right))
            if _terms(top) > _MAX_TERMS:
                raise Refused("too large", f"more than {_MAX_TERMS} terms")
            self.numerators.append(sympy.expand(top))
            self.denominators.append(bottom)

    def answer(self) -> dict[str, Any]:
        if self.parameters:
            return self.symbolic()
        if not all(top.is_polynomial(*self.unknowns) for top in self.numerators):
            return self.real()
        polynomials = [sympy.Poly(top, *self.unknowns) for top in self.numerators if top != 0]
        if not polynomials:
            return _said("Infinitely many solutions.")
        if any(polynomial.total_degree() > _MAX_POWER for polynomial in polynomials):
            raise Refused("too large", f"a degree above {_MAX_POWER}")
        rational = all(polynomial.domain.is_ZZ or polynomial.domain.is_QQ for polynomial in polynomials)
        if all(polynomial.is_linear for polynomial in polynomials):
            return self.linear(rational)
        if len(self.unknowns) == 1:
            return self.listed(_roots(polynomials, rational), complete="No solution.")
        if rational:
            return self.polynomial(polynomials)
        return self.guessed()

    def linear(self, rational: bool) -> dict[str, Any]:
        solutions = sympy.linsolve(self.numerators, *self.unknowns)
        if not solutions:
            return self.nothing("No solution.", rational)
        (solution,) = solutions
        if not set().union(*(value.free_symbols for value in solution)):
            return self.listed([solution], complete="No solution.")
        if any(bottom.free_symbols for bottom in self.denominators):
            raise Refused("cannot solve", "infinitely many candidates with a denominator that may be 0")
        free = [f"{x.name} = {_exact(value)}" for x, value in zip(self.unknowns, solution, strict=True) if x != value]
        return _said("\n".join(["Infinitely many solutions:", *free]))

    def polynomial(self, polynomials: list[Expr]) -> dict[str, Any]:
        basis = sympy.groebner(polynomials, *self.unknowns)
        if basis.exprs == [1]:
            return _said("No solution.")
        if not basis.is_zero_dimensional:
            if any(bottom.free_symbols for bottom in self.denominators):
                raise Refused("cannot solve", "infinitely many candidates with a denominator that may be 0")
            return _said("Infinitely many solutions.")
        try:
            found = sympy.solve_poly_system(polynomials, *self.unknowns, strict=True)
        except (NotImplementedError, sympy.polys.polyerrors.UnsolvableFactorError):
            raise Refused("cannot solve", "no solution by radicals") from None
        return self.listed(found or [], complete="No solution.")

    def real(self) -> dict[str, Any]:
        """Solve what is not polynomial: one unknown, in the real numbers."""
        if len(self.unknowns) > 1:
            return self.guessed()
        (x,) = self.unknowns
        left, right = self.pairs[0]
        found = sympy.solveset(left - right, x, sympy.S.Reals)
        if isinstance(found, sympy.FiniteSet):
            return self.listed([(value,) for value in found], complete="No real solution.", verified=True)
        if found == sympy.S.EmptySet:
            return self.nothing("No real solution.", certain=False)
        parts = found.args if isinstance(found, sympy.Union) else (found,)
        if len(self.pairs) == 1 and all(isinstance(part, sympy.ImageSet) for part in parts):
            return _said("Infinitely many solutions.")
        raise Refused("cannot solve", "")

    def guessed(self) -> dict[str, Any]:
        """Solve what has no complete method: solutions that are found are right, that none is found means nothing."""
        found = sympy.solve([left - right for left, right in self.pairs], self.unknowns, dict=True)
        solutions = [tuple(each.get(x, x) for x in self.unknowns) for each in found]
        if not solutions or any(value.free_symbols for solution in solutions for value in solution):
            raise Refused("cannot solve", "")
        return self.listed(solutions, complete="", verified=True)

    def symbolic(self) -> dict[str, Any]:
        """Solve for the unknowns in terms of the other names."""
        found = sympy.solve([left - right for left, right in self.pairs], self.unknowns, dict=True)
        if not found or len(found) > MAX_SOLUTIONS:
            raise Refused("cannot solve", "")
        solutions = []
        for each in found:
            if set(each) != set(self.unknowns) or any(
                value.free_symbols & set(self.unknowns) for value in each.values()
            ):
                raise Refused("cannot solve", "the unknowns depend on each other")
            if any(sympy.simplify((left - right).subs(each)) != 0 for left, right in self.pairs):
                raise Refused("cannot solve", "a solution did not stand the check")
            solutions.append([_exact(sympy.simplify(each[x])) for x in self.unknowns])
        solutions.sort()
        return _said("\n".join(self.lines(solutions)))

    def listed(self, solutions: Iterable[Solution], *, complete: str, verified: bool = False) -> dict[str, Any]:
        """Show solutions after putting each into the equations.

        `complete` is what it means that there is none. Candidates that make a denominator 0 are none; with
        `verified` so are all that do not stand the check, else such a one would be a fault of the method.
        """
        kept = []
        for solution in solutions:
            values = dict(zip(self.unknowns, solution, strict=True))
            if any(bottom.free_symbols and _is_zero(bottom.subs(values)) for bottom in self.denominators):
                continue
            if not all(_equal(left.subs(values), right.subs(values)) for left, right in self.pairs):
                if verified:
                    continue
                raise Refused("cannot solve", "a solution did not stand the check")
            kept.append(solution)
        if not kept:
            if complete:
                return self.nothing(complete, certain=not verified)
            raise Refused("cannot solve", "")
        if len(kept) > MAX_SOLUTIONS:
            raise Refused("too large", f"{len(kept)} solutions, more than {MAX_SOLUTIONS}")
        kept.sort(key=lambda solution: [_order(value) for value in solution])
        shown = [[_shown(value) for value in solution] for solution in kept]
        if len({tuple(exact for _, exact in each) for each in shown}) < len(shown):
            raise Refused("cannot solve", "solutions that can't be told apart")
        if "i" in {x.name for x in self.unknowns} and any(value.has(sympy.I) for each in kept for value in each):
            raise Refused("ambiguous", "i is an unknown, and the imaginary unit of a solution")
        lines = self.lines([[text for text, _ in each] for each in shown])
        stated = dict.fromkeys(exact for each in shown for _, exact in each)
        return {"text": "\n".join(lines), "values": list(stated)}

    def lines(self, solutions: Sequence[Sequence[str]]) -> list[str]:
        several = len(solutions) > 1
        return [
            f"{x.name}{f'_{number}' if several else ''} = {text}"
            for number, solution in enumerate(solutions)
            for x, text in zip(self.unknowns, solution, strict=True)
        ]

    def nothing(self, text: str, certain: bool) -> dict[str, Any]:
        """Say that there is no solution; where the method may have missed one, look for a counterexample first."""
        if not certain and (len(self.unknowns) > 1 or self.has_root()):
            raise Refused("cannot solve", "")
        return _said(text)

    def has_root(self) -> bool:
        """Tell whether a few searches from different starts find a real root of the one equation."""
        (x,), (left, right) = self.unknowns, self.pairs[0]
        for start in (0.3, 1, -1, 2.5, -3, 7, 20, -20, 100, 1000):
            try:
                root = sympy.nsolve(left - right, x, start, maxsteps=40)
            except (ValueError, ZeroDivisionError, TypeError, OverflowError):
                continue  # no convergence from here
            if root.is_real and _equal(left.subs(x, root), right.subs(x, root)):
                return True
        return False


def _said(text: str) -> dict[str, Any]:
    return {"text": text, "values": []}


def _roots(polynomials: list[Expr], rational: bool) -> list[Solution]:
    """Return the distinct roots that all polynomials in one unknown have in common."""
    if not rational:
        if len(polynomials) > 1:
            raise Refused("cannot solve", "several equations in one unknown, with irrational coefficients")
        found = sympy.roots(polynomials[0])
        if sum(found.values()) != polynomials[0].degree():
            raise Refused("cannot solve", "no solution by radicals")
        return [(root,) for root in found]
    common = polynomials[0]
    for polynomial in polynomials[1:]:
        common = sympy.gcd(common, polynomial)
    roots: list[Expr] = []
    for factor, _ in common.factor_list()[1]:
        radicals = sympy.roots(factor, cubics=False, quartics=False) if factor.degree() <= 4 else {}
        complete = sum(radicals.values()) == factor.degree()
        roots += list(radicals) if complete else factor.nroots(n=2 * _GUARD, maxsteps=500)
    return [(root,) for root in roots]


def _equal(left: Expr, right: Expr) -> bool:
    """Tell whether two numbers agree to more digits than are shown."""
    try:
        first, second = _parts(left), _parts(right)
    except Refused:
        return False
    a, b = first[0] + sympy.I * first[1], second[0] + sympy.I * second[1]
    return bool(abs(a - b) <= max(1, abs(a), abs(b)) * sympy.Float("1e-12"))


def _order(value: Expr) -> tuple[bool, float, float]:
    """Return the order of solutions: real ones first, then by real and imaginary part."""
    real, imaginary = (sympy.S.Zero, sympy.S.Zero) if _is_zero(value) else _parts(value)
    return imaginary != 0, real, imaginary


# The process


_JOBS: Mapping[str, Callable[[Job], dict[str, Any]]] = {
    "calculate": lambda job: calculate(job["tree"]),
    "solve": lambda job: solve(job["equations"], job["names"], job["unknowns"]),
}


def answer(job: Job) -> dict[str, Any]:
    """Carry out a job; whatever goes wrong is an answer too, but for memory running out."""
    try:
        return _JOBS[job["job"]](job)
    except Refused as refused:
        return {"reason": refused.reason, "detail": refused.detail}
    except RecursionError:
        return {"reason": "too deep", "detail": ""}
    except MemoryError:
        raise
    except Exception as error:  # sympy raises what it likes; the expression is a stranger's
        return {"reason": "cannot compute", "detail": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    """Answer jobs until stdin ends."""
    # Only answers may reach the parent: whatever else is printed goes to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.buffer.readline() or b"{}")
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    _limit_memory(settings.get("memory"))
    found: dict[str, Any] = {"ready": True}
    while True:
        out.write(json.dumps(found) + "\n")
        out.flush()
        if "last" in found:
            os._exit(1)
        line = lines.get()
        _limit_time(settings.get("seconds"))
        try:
            found = answer(json.loads(line))
        except MemoryError:  # what is left of this process is not to be trusted
            found = {"reason": "out of memory", "detail": "", "last": True}


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    for line in iter(sys.stdin.buffer.readline, b""):
        lines.put(line)
    os._exit(0)  # the parent is gone; a computation under way is nobody's any more


def _limit_memory(size: int | None) -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's clock and the sizes checked above hold there
        return
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float | None) -> None:
    """Let the system end the process when a job uses more processor time: C code is not stopped by anything else."""
    try:
        import resource
    except ImportError:
        return
    if seconds:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1, -1))


if __name__ == "__main__":
    main()
