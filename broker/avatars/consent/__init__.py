"""Avatars that people agreed to: the page that asks, what is kept, and how it is taken back.

WeChat gives no server its followers' avatars any more; each person can agree on a page in WeChat
(WECHAT.md W99, W125 to W130). Where to look: `state.py` what binds an answer to the browser that
asked, `store.py` and `consents.py` what is kept, `exchange.py` how a code becomes an avatar,
`page.py` and `texts.py` what people see, `messages.py` and `events.py` what WeChat tells of those
who took their consent back, `upkeep.py` what is done as time passes, `limits.py` what strangers may
take, and `site.py` how these are put together.
"""
