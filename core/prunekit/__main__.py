"""``python -m prunekit``: the command ``prunekit``, wherever its script is not on the path."""

from importlib.metadata import distribution


def main() -> None:
    """Run what the installed distribution calls ``prunekit``; the engine itself knows no command line."""
    (command,) = distribution("prunekit").entry_points.select(group="console_scripts", name="prunekit")
    command.load()()


if __name__ == "__main__":
    main()
