"""The ``searchrl`` command, one module a subcommand."""
