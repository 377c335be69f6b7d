"""A string that cannot print itself, and the fingerprint that tells one from another."""

import hashlib
import hmac
from typing import NoReturn


class Secret:
    """A string that does not show itself.

    ``repr``, ``str`` and ``format`` give ``[secret]``, and it cannot be pickled.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string.

        Call it where the value leaves for its one destination, nowhere else.
        """
        return self._value

    def matches(self, text: str) -> bool:
        """Return True if this secret is what a stranger said.

        The time that the comparison takes does not depend on where the two differ.
        """
        return hmac.compare_digest(self._value.encode(), text.encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        return "[secret]"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not written anywhere")


def fingerprint(secret: Secret, salt: str) -> str:
    """Return 16 bits of a salted hash.

    That is enough to see that a secret was changed, and far too little to learn it.
    """
    return hashlib.sha256(f"{salt} {secret.reveal()}".encode()).hexdigest()[:4]
