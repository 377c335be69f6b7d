"""What is in a store file: is it ours, and is every row one that token-broker may have written."""

from collections.abc import Iterator
from typing import Final

from sqlite_utils import Database

from broker.core.quota import Lane
from broker.store.rows import ACCOUNT_COLUMNS, CALL_COLUMNS, oddity
from broker.store.sqlite.anchor import ANCHOR_COLUMNS

_TABLES: Final[dict[str, dict[str, type]]] = {
    "meta": {"key": str, "value": str},
    "accounts": {**ACCOUNT_COLUMNS, **ANCHOR_COLUMNS},
    "calls": {**CALL_COLUMNS, **ANCHOR_COLUMNS},
}
_SINCE: Final = {"emergency": 2, "lease_lost": 2}  # schema versions of columns that came later
_LANES: Final = ", ".join(f"'{lane}'" for lane in Lane)
# All rows in one statement: a ledger may hold a week of a thousand apps.
_ODD_CALLS: Final = f"""select count(*), min(id) from calls where typeof(appid) <> 'text'
 or typeof(endpoint) <> 'text' or lane is null or lane not in ({_LANES})
 or typeof(forced) <> 'integer' or typeof(cost) <> 'integer' or typeof(boot_id) <> 'text'
 or typeof(boot_at) <> 'real' or typeof(wall_at) <> 'real'
 or abs(boot_at) > 1e15 or abs(wall_at) > 1e15"""  # noqa: S608 -- of constants


def oddities(db: Database, version: int) -> Iterator[str]:
    """Yield what is wrong with a sound database whose schema has `version`, as sentences.

    Nothing is wrong with an empty one. Raises sqlite3.Error.
    """
    there = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    there = {name for name in there if not name.startswith("sqlite_")}
    if not there and not version:
        return
    if missing := sorted(_missing(db, there, version)):
        yield (
            f"this is no store of token-broker's, it lacks {', '.join(missing)}: name another file"
            " in store.url"
        )
        return
    if not db.execute("select value from meta where key = 'epoch' and value <> ''").fetchone():
        yield "the table meta has no epoch: restore a backup, or move the file away"
    names = list(_TABLES["accounts"])
    for row in db.execute(f"select {', '.join(names)} from accounts"):  # noqa: S608 -- the same
        if why := oddity(dict(zip(names, row, strict=True)), _TABLES["accounts"]):
            yield f"{why}: restore a backup, or move the file away"
    odd, first = db.execute(_ODD_CALLS).fetchone()
    if odd:
        yield (
            f"{odd} row(s) of the table calls hold what token-broker does not write (the first has"
            f" id {first}): restore a backup, or move the file away"
        )


def _missing(db: Database, there: set[str], version: int) -> Iterator[str]:
    if not version:  # tables that no migration of ours made
        yield from (f"the table {table}" for table in _TABLES)
        return
    for table, columns in _TABLES.items():
        if table not in there:
            yield f"the table {table}"
            continue
        found = {row[1] for row in db.execute(f"pragma table_info({table})")}
        for name in columns:
            if name not in found and _SINCE.get(name, 1) <= version:
                yield f"the column {table}.{name}"
