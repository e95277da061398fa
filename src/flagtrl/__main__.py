"""`python -m flagtrl`: the command line, where the folder of scripts is on no path."""

from flagtrl.cli import main

if __name__ == "__main__":
    main()
