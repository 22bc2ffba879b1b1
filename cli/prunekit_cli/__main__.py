"""``prunekit``, and ``python -m prunekit_cli``, which ``torchrun -m prunekit_cli`` needs."""

import sys

from prunekit_cli import signals


def main() -> None:
    """Be ready for signals before anything is imported, which takes longest."""
    try:
        with signals.interrupting():
            from prunekit_cli.main import main as command

            command()
    except ImportError:
        refused = signals.no_handles()
        if not refused:
            raise
        print(refused, file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        signals.say()
        raise SystemExit(signals.INTERRUPTED) from None


if __name__ == "__main__":
    main()
