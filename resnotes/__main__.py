"`python -m resnotes` is the command `resnotes`"
import sys


def main():
    "The program; where only the core is installed, one line that says what to install"
    try: from resnotes.cli import main as program
    except ModuleNotFoundError as error:
        if 'resnotes[train]' not in str(error): raise
        return str(error)
    return program()


if __name__ == '__main__': sys.exit(main())
