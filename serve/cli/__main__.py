"""``python -m serve.cli``, where the command itself is not installed."""

from serve.cli.main import main

if __name__ == "__main__":
    main()
