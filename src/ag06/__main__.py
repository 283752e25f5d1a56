"""`python -m ag06` is `ag06`."""

from ag06.cli import main

if __name__ == "__main__":
    main()
