"""`python -m automc` is the command line."""

from automc.cli import main

if __name__ == "__main__":
    main()
