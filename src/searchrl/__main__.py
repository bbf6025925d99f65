"""``python -m searchrl``: the same program as the ``searchrl`` script."""

from searchrl.cli.main import run

if __name__ == "__main__":
    run()
