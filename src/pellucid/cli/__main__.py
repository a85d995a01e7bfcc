"""`python -m pellucid.cli` is the `pellucid` command."""

from pellucid.cli import entry

if __name__ == "__main__":
    entry()
