"""Hooks of schemathesis that change a request before it is sent.

Its command loads them ($SCHEMATHESIS_HOOKS); tests do not.
"""

from typing import Any

import schemathesis

MOST = {"wait": 300, "min_ttl": 86400}
LONGEST_WAIT_S = 0.05


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Shorten a wait that is allowed: what it ends with does not depend on how long it was.

    Seconds are written as people write them: OpenAPI cannot say that 5e-324 is no way to say 0.
    """
    query = dict(case.query or {})
    if _is_number(query.get("wait")) and LONGEST_WAIT_S < query["wait"] <= MOST["wait"]:
        query["wait"] = LONGEST_WAIT_S
    if query:
        case.query = query


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
