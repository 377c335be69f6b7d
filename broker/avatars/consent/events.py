"""The route that hears of those who took their consent back elsewhere (WECHAT.md W116 to W121).

WeChat calls it, or the account's message server forwards to it what WeChat sent, with the query and
the body as they came. The answer is `success` within five seconds, whatever the message is; only a
deletion that failed is answered otherwise, so that it is sent again.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from broker.avatars.consent import push
from broker.avatars.consent.consents import Consents, ConsentStoreError
from broker.avatars.consent.exchange import OPENID
from broker.config.settings import ConsentSettings
from broker.http.problems import ProblemError

SUCCESS: Final = "success"
# What a withdrawal may be of: nickname and avatar (205), or all of it (301), WECHAT.md W117.
OF_AVATAR: Final = {"205", "301"}
REASONS: Final = {
    "user_authorization_revoke": "revoked",
    "user_authorization_cancellation": "account-closed",
    "user_info_modified": "profile-modified",
    "unsubscribe": "unfollowed",
}
WHY_NOT: Final = {
    "signature": "The signature is not that of this account's message token.",
    "timestamp": "The timestamp is more than five minutes from now.",
    "declaration": "A message with a DTD or entities is not read.",
    "unreadable": "The message cannot be read.",
    "receiver": "The message is for another account.",
    "plain": "Only encrypted messages are accepted, since message_key_file is configured.",
    "encrypted": "The message is encrypted, and message_key_file is not configured.",
}


class EventDesk:
    """The handlers. `wall` tells Unix seconds."""

    def __init__(
        self, settings: ConsentSettings, consents: Consents, wall: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._consents = consents
        self._wall = wall

    async def greet(self, request: web.Request) -> web.Response:
        """Answer WeChat's question, asked when the URL is entered, whether the token is known."""
        self._check(request.query)
        return web.Response(text=request.query.get("echostr", "")[:512])

    async def hear(self, request: web.Request) -> web.Response:
        """Take a message, and obey it if it is about a consent."""
        self._check(request.query)
        try:
            fields = self._open(request.query, await request.read())
        except push.PushError as error:
            raise _refusal(error) from None
        try:
            await self._obey(fields)
        except ConsentStoreError:
            detail = "The consents cannot be deleted now: send the event again."
            raise ProblemError(503, "not-deleted", detail) from None
        return web.Response(text=SUCCESS)

    def _check(self, query: Mapping[str, str]) -> None:
        token = self._settings.message_token
        if token is None:
            raise ProblemError(404, "not-found", "avatars.consent.message_token_file is not set.")
        try:
            push.check(token.reveal(), query, self._wall())
        except push.PushError as error:
            raise _refusal(error) from None

    def _open(self, query: Mapping[str, str], body: bytes) -> dict[str, str]:
        """Return the fields of a message, decrypted if it is encrypted. Raises PushError."""
        token, key = self._settings.message_token, self._settings.message_key
        is_encrypted = query.get("encrypt_type", "raw") == "aes"
        if key is None or not is_encrypted:
            if is_encrypted or key is not None:
                raise push.PushError("encrypted" if is_encrypted else "plain")
            return push.fields_of(body)
        sealed = push.fields_of(body).get("Encrypt", "")
        signed = query.get("timestamp", ""), query.get("nonce", ""), sealed
        given = query.get("msg_signature", "")
        if token is None or not push.is_signed(token.reveal(), given, *signed):
            raise push.PushError("signature")
        return push.fields_of(push.decrypt(key.reveal(), self._settings.appid, sealed))

    async def _obey(self, fields: Mapping[str, str]) -> None:
        """Delete what an event ends. Raises ConsentStoreError."""
        why = REASONS.get(fields.get("Event", ""))
        if why is None or fields.get("MsgType") != "event":
            return
        if fields.get("AppID", self._settings.appid) != self._settings.appid:
            return
        if why == "revoked":
            revoked = set(re.findall(r"[0-9]+", fields.get("RevokeInfo", "")))
            if not revoked & OF_AVATAR:
                return
        openid = fields.get("OpenID") or fields.get("FromUserName", "")
        if not OPENID.fullmatch(openid):
            return
        made_at = fields.get("CreateTime", "")
        # Events may be repeated (WECHAT.md W123): one from before a new consent does not end it.
        until = float(made_at) if re.fullmatch(r"[0-9]{1,12}", made_at) else None
        await self._consents.forget([openid], why, until)


def _refusal(error: push.PushError) -> ProblemError:
    why = str(error)
    status = 403 if why in {"signature", "timestamp", "receiver", "plain", "encrypted"} else 400
    return ProblemError(status, "message-refused", WHY_NOT[why])
