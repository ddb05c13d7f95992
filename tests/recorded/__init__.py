"""How each method is compared with what its official code recorded: a module per family.

A module registers a function for each `meta["method"]` by `checks`; `test_golden_methods.py` calls
it with the `Case`. `trajectory` is what all that are trained by steps share.
"""

from recorded.case import (
    Case,
    Parameter,
    checks,
    compare_logits,
    given_case,
    known,
    relative,
    split,
    trajectory,
    value,
)

__all__ = [
    "Case",
    "Parameter",
    "checks",
    "compare_logits",
    "given_case",
    "known",
    "relative",
    "split",
    "trajectory",
    "value",
]
