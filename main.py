"""The command line: `python main.py --help`."""

from lmlab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
