"""`python -m atelier`: the same command line as `atelier`."""

from atelier.cli import main

if __name__ == "__main__":
    main()
