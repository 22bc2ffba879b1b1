"""``python -m prunekit_cli``, which ``torchrun -m prunekit_cli`` needs."""

from prunekit_cli.main import main

main()
