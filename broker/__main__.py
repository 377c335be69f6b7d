"""`python -m broker` is `token-broker`."""

from broker.cli.commands import main

main()
