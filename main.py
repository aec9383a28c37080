"""The command line: `python main.py --help`."""

from lmlab.cli import program

if __name__ == "__main__":
    program()
