"""`python -m lmscout`, where the command is not on the path."""

from lmscout.cli.main import main

if __name__ == "__main__":
    main()
