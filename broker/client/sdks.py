"""WeChat's SDKs for Python on the broker.

They keep neither token nor secret, and never loop on a dead token. What the broker refuses comes as
the SDK's own exception, with WeChat's number and words. No text holds a token or key.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from broker.client.protocol import BrokerError
from broker.client.sync import TokenClient

if TYPE_CHECKING:
    import wechatpy.client.api
    import wechatpy.oauth
    import werobot.client

SYSTEM_ERROR: Final = (-1, "system error")
WORDS: Final = {
    "missing-key": (40125, "invalid appsecret"),
    "invalid-key": (40125, "invalid appsecret"),
    "unknown-app": (40013, "invalid appid"),
    "insufficient-scope": (48001, "api unauthorized"),
    "quota-exhausted": (45009, "reach max api daily quota limit"),
    "login-throttled": (45011, "api minute-quota reach limit, must slower, retry next minute"),
    "report-throttled": (45011, "api minute-quota reach limit, must slower, retry next minute"),
}
# The type of a ticket by the end of wechatpy's key.
TICKETS: Final = {"_jsapi_ticket": "jsapi", "_jsapi_card_ticket": "wx_card"}


@contextmanager
def _in_wechats_words(exception: Callable[[int, str], Exception]) -> Iterator[None]:
    try:
        yield
    except BrokerError as error:
        errcode, words = WORDS.get(error.code, SYSTEM_ERROR)
        raise exception(errcode, f"{words} (token-broker: {error.detail})") from error


class WechatpySession:
    """A `SessionStorage` for wechatpy: token and tickets are the broker's.

    What else wechatpy keeps stays in memory.

    For `WeChatClient(appid, None, session=WechatpySession(tokens), auto_retry=False)`;
    `requests_auth(tokens)` as `client._http.auth` reports a refused token and sends the request
    once more. wechatpy's own retry goes on without end while a token stays dead, and of an upload
    it sends what is left of the file, which is nothing.
    """

    def __init__(self, tokens: TokenClient) -> None:
        self._tokens = tokens
        self._kept: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """Give a value of the broker's or of our own; raises wechatpy's WeChatClientException."""
        if key.endswith("_access_token") and not key.endswith("component_access_token"):
            with _in_wechats_words(_wechatpy_error):
                return self._tokens.get()
        for ending, kind in TICKETS.items():
            if key.endswith((ending, f"{ending}_expires_at")):
                return self._ticket(kind, key, default)
        return self._kept.get(key, default)

    # Wechatpy's own does not look at it
    def set(self, key: str, value: Any, ttl: float | None = None) -> None:  # noqa: ARG002
        """Keep a value. A token or ticket is never read back: those come from the broker."""
        if value is not None:
            self._kept[key] = value

    def delete(self, key: str) -> None:
        """Forget it."""
        self._kept.pop(key, None)

    def _ticket(self, kind: str, key: str, default: Any) -> Any:
        try:
            with _in_wechats_words(_wechatpy_error):
                ticket = self._tokens.ticket(kind)
        except Exception as error:
            if (
                isinstance(error.__cause__, BrokerError)
                and error.__cause__.code == "unknown-ticket"
            ):
                return self._kept.get(key, default)  # of a type that the app has not
            raise
        return int(time.time()) + ticket.expires_in if key.endswith("_expires_at") else ticket.value


def _wechatpy_error(errcode: int, words: str) -> Exception:
    from wechatpy.exceptions import (  # noqa: PLC0415
        WeChatClientException,
    )

    error: Exception = WeChatClientException(errcode, words)
    return error


def wechatpy_oauth(
    tokens: TokenClient, app_id: str, redirect_uri: str, scope: str = "snsapi_base", state: str = ""
) -> "wechatpy.oauth.WeChatOAuth":
    """A `wechatpy.WeChatOAuth` that has the broker exchange the code: it holds no secret.

    What it asks with a user's token goes to WeChat itself, as ever. Raises wechatpy's
    WeChatOAuthException.
    """
    import wechatpy.exceptions  # noqa: PLC0415 -- only who uses it needs it
    import wechatpy.oauth  # noqa: PLC0415 -- the same

    refusal = wechatpy.exceptions.WeChatOAuthException

    class OAuth(wechatpy.oauth.WeChatOAuth):  # type: ignore[misc]  # it ships no types
        def _get(self, url: str, **asked: Any) -> Any:
            if url != "sns/oauth2/access_token":
                return super()._get(url, **asked)
            return _logged_in(tokens, asked["params"]["code"], "web", refusal)

    return OAuth(app_id, None, redirect_uri, scope, state)


def wechatpy_wxa(tokens: TokenClient, client: Any) -> "wechatpy.client.api.WeChatWxa":
    """What takes the place of a wechatpy client's `wxa`: its `code_to_session` is the broker's.

    Raises wechatpy's WeChatClientException.
    """
    import wechatpy.client.api  # noqa: PLC0415 -- only who uses it needs it

    class Wxa(wechatpy.client.api.WeChatWxa):  # type: ignore[misc]  # it ships no types
        def code_to_session(self, js_code: str) -> Any:
            return _logged_in(tokens, js_code, "miniprogram", _wechatpy_error)

    return Wxa(client)


def _logged_in(
    tokens: TokenClient, code: str, kind: str, exception: Callable[[int, str], Exception]
) -> dict[str, Any]:
    """Exchange a code; WeChat's refusal and the broker's are the SDK's exception."""
    with _in_wechats_words(exception):
        answer = tokens.login(code, kind)
    if errcode := int(answer.get("errcode", 0)):
        raise exception(errcode, str(answer.get("errmsg", "")))
    return answer


def werobot_client(tokens: TokenClient) -> "werobot.client.Client":
    """Return a client for WeRoBot that takes the token from the broker.

    A refused token is reported, and the request sent once more; by itself WeRoBot goes on with a
    refused token until its end. A robot takes the client as its class's attribute `client`; see
    deploy/sdk/README.md.
    """
    import requests  # noqa: PLC0415 -- only who uses it needs it
    import werobot.client  # noqa: PLC0415 -- the same

    from broker.client.adapters import requests_auth  # noqa: PLC0415 -- the same

    auth = requests_auth(tokens)

    def refusal(errcode: int, words: str) -> Exception:
        error: Exception = werobot.client.ClientException(f"{errcode}: {words}")
        return error

    class Client(werobot.client.Client):  # type: ignore[misc]  # it ships no types
        def get_access_token(self) -> str:
            with _in_wechats_words(refusal):
                return tokens.get()

        def request(self, method: str, url: str, **sending: Any) -> Any:
            with _in_wechats_words(refusal):
                return super().request(method, url, **{"auth": auth, **sending})

        def download_media(self, media_id: str) -> requests.Response:
            with _in_wechats_words(refusal):
                url = "https://api.weixin.qq.com/cgi-bin/media/get"
                return requests.get(url, params={"media_id": media_id}, auth=auth, timeout=60)

    return Client({})
