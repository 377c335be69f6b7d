"""What WeChat pushes to an account's message URL: signature, encryption, and what is in it.

Pure but for the clock that is passed in. The facts are WECHAT.md W116 to W118 and W137 and W138.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree as ET

LATE_S: Final = 300
BLOCK: Final = 32
HEAD: Final = 20  # 16 random bytes and the length of the message
# A declaration other than CDATA: a DTD or an entity, of which WeChat's messages have none.
_DECLARATION: Final = re.compile(r"<!(?!\[CDATA\[)")


class PushError(Exception):
    """A message that is not WeChat's, is late, or cannot be read. The text says which, no more."""


def is_signed(token: str, signature: str, *parts: str) -> bool:
    """Return True if `signature` is that of these parts with the account's message token."""
    text = "".join(sorted([token, *parts])).encode("utf-8", "replace")
    digest = hashlib.sha1(text, usedforsecurity=False).hexdigest()  # WeChat's algorithm
    return hmac.compare_digest(digest, signature.encode("ascii", "replace").decode())


def check(token: str, query: Mapping[str, str], now: float) -> None:
    """Raise PushError unless the query is signed with the token and at most five minutes old."""
    timestamp, nonce = query.get("timestamp", ""), query.get("nonce", "")
    if not is_signed(token, query.get("signature", ""), timestamp, nonce):
        raise PushError("signature")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp) or abs(now - int(timestamp)) > LATE_S:
        raise PushError("timestamp")


def fields_of(body: bytes) -> dict[str, str]:
    """Return the fields of a message in XML or JSON, their names without blanks around them.

    Raises PushError. What is nested deeper is left out.
    """
    try:
        text = body.decode("utf-8-sig").strip()
        return _of_json(text) if text.startswith("{") else _of_xml(text)
    except (ValueError, RecursionError, ET.ParseError):
        raise PushError("unreadable") from None


def _of_json(text: str) -> dict[str, str]:
    read = json.loads(text)
    if not isinstance(read, dict):
        raise PushError("unreadable")
    return {
        str(name).strip(): str(value).strip()
        for name, value in read.items()
        if isinstance(value, str | int)
    }


def _of_xml(text: str) -> dict[str, str]:
    if _DECLARATION.search(text):
        raise PushError("declaration")
    # Without declarations there are no entities that could be expanded.
    root = ET.fromstring(text)  # noqa: S314
    return {child.tag.strip(): (child.text or "").strip() for child in root}


def decrypt(message_key: str, appid: str, sealed: str) -> bytes:
    """Return the message in `Encrypt`. Raises PushError if it is not for this account.

    `message_key` is the EncodingAESKey of the account's console, 43 characters. Needs the package
    cryptography.
    """
    from cryptography.hazmat.primitives.ciphers import (  # noqa: PLC0415 -- an extra
        Cipher,
        algorithms,
        modes,
    )

    try:
        key = base64.b64decode(f"{message_key}=")
        text = base64.b64decode(sealed, validate=True)
        decryptor = Cipher(algorithms.AES(key), modes.CBC(key[:16])).decryptor()
        padded = decryptor.update(text) + decryptor.finalize()
    except (ValueError, binascii.Error):
        raise PushError("unreadable") from None
    pad = padded[-1] if padded else 0
    if not 1 <= pad <= BLOCK or len(padded) < HEAD + pad:
        raise PushError("unreadable")
    plain = padded[:-pad]
    length = int.from_bytes(plain[16:HEAD])
    message, receiver = plain[HEAD : HEAD + length], plain[HEAD + length :]
    if len(message) != length or receiver.decode("utf-8", "replace") != appid:
        raise PushError("receiver")
    return message
