"""`python -m atelier`: the same command line as `atelier`."""

from atelier.cli.main import main

if __name__ == "__main__":
    main()
