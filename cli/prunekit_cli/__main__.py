"""``prunekit``, and ``python -m prunekit_cli``, which ``torchrun -m prunekit_cli`` needs."""

from prunekit_cli import signals


def main() -> None:
    """Be ready for signals before anything is imported, which takes longest."""
    try:
        with signals.interrupting():
            from prunekit_cli.main import main as command

            command()
    except KeyboardInterrupt:
        signals.say()
        raise SystemExit(signals.INTERRUPTED) from None


if __name__ == "__main__":
    main()
