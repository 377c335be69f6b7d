"""`python -m tests.bench [--brief] [--only WORD]` prints one table.

Each row's module says how it is measured.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tests.bench import (
    client,
    crowds,
    followers,
    footprint,
    handouts,
    loads,
    many,
    nodes,
    proxied,
    refreshes,
    requests,
    rivals,
    simulated,
)
from tests.bench.table import Row, markdown

GROUPS: dict[str, Callable[[Path, bool], list[Row]]] = {
    "requests": lambda home, brief: requests.rows(home, brief=brief),
    "drop-in": lambda home, brief: requests.drop_in(home, brief=brief),
    "handouts": lambda home, brief: handouts.rows(home, brief=brief),
    "rivals": lambda home, brief: rivals.rows(home, brief=brief),
    "proxy": lambda home, brief: proxied.rows(home, brief=brief),
    "cold-start": lambda home, _: requests.cold_start(home),
    "start-up": lambda home, brief: footprint.start_up(home, brief=brief),
    "memory": lambda home, brief: footprint.memory(home, brief=brief),
    "day": lambda home, brief: simulated.day(home, brief=brief),
    "year": lambda home, brief: simulated.year(home, brief=brief),
    "refreshes": lambda home, brief: refreshes.rows(home, brief=brief),
    "many": lambda home, brief: many.rows(home, brief=brief),
    "nodes-day": lambda home, brief: nodes.day(home, brief=brief),
    "nodes-faults": lambda home, brief: nodes.faults(home, brief=brief),
    "nodes-away": lambda home, brief: nodes.away(home, brief=brief),
    "client": lambda home, brief: client.rows(home, brief=brief),
    "latency": lambda home, brief: client.latency(home, brief=brief),
    "followers": lambda home, brief: followers.rows(home, brief=brief),
    "crowds-slow-clients": lambda home, brief: crowds.slow_clients(home, brief=brief),
    "crowds-watchers": lambda home, brief: crowds.watchers(home, brief=brief),
    "load-logins": lambda home, brief: loads.logins(home, brief=brief),
    "load-rotation": lambda home, brief: loads.rotation(home, brief=brief),
    "crowds-killed": lambda home, brief: crowds.killed(home, brief=brief),
}


def measure(*, brief: bool, only: str = "") -> Iterator[Row]:
    """Every row of the groups whose name contains `only`."""
    for name, group in GROUPS.items():
        if only in name:
            with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as home:
                yield from group(Path(home), brief)


@click.command()
@click.option(
    "--brief", is_flag=True, help="Prove that each row runs and is right; its figures mean nothing."
)
@click.option("--only", default="", help="Only groups whose name contains this.")
@click.option("--imports", is_flag=True, help="The imports of `serve` that cost most, as well.")
def main(*, brief: bool, only: str, imports: bool) -> None:
    """Measure, and print a table."""
    rows = list(measure(brief=brief, only=only))
    click.echo(markdown(rows))
    if imports:
        click.echo("\n" + footprint.imports())
    if not all(row.good for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
