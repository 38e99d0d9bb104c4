"""``python -m fastflow`` is the same program as ``fastflow``."""

from fastflow.cli.main import main

if __name__ == "__main__":
    main(prog_name="fastflow")
