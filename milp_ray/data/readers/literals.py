"""Lines that are JSON, or Python literals, which some data sets were written as.

``ast.literal_eval`` runs nothing, but takes much memory for long or deep texts: both are bounded.
As with JSON, a key that stands twice is refused.
"""

from __future__ import annotations

import ast
import warnings

from milp_ray.data.readers.strict import Fault, decode, parse

MAX_LITERAL_BYTES = 4 * 1024 * 1024


def parse_record(raw: bytes) -> object:
    """A JSON value; of what is no JSON, a Python literal.

    Raises:
        Fault: it is neither, or one that :func:`parse_literal` or :func:`.strict.parse` refuses.
    """
    try:
        return parse(raw)
    except Fault as fault:
        if not fault.fact.startswith("is not valid JSON"):
            raise
    return parse_literal(raw)


def parse_literal(raw: bytes) -> object:
    """A Python literal: a dict, a list, a text, a number, …

    Raises:
        Fault: not UTF-8, too long or too deep, or no literal.
    """
    if len(raw) > MAX_LITERAL_BYTES:
        raise Fault(f"a Python literal of more than {MAX_LITERAL_BYTES} bytes", remedy="write it as JSON")
    text = decode(raw).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in texts; they would be printed
            tree = ast.parse(text, mode="eval")
        _refuse_twice(tree)
        found: object = ast.literal_eval(tree)
    except (MemoryError, RecursionError):
        raise Fault("is nested too deeply", "a value of a few levels") from None
    except (SyntaxError, TypeError, ValueError):
        raise Fault("is neither JSON nor a Python literal", "one value a line") from None
    return found


def _refuse_twice(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            if len(set(keys)) != len(keys):
                raise Fault("an object has the same key twice", "each key once", "remove one of the two")
