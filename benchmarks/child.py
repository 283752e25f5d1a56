"""One measurement in a process of its own: `python -m benchmarks.child MODULE.FUNCTION JSON`."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys


def main() -> None:
    logging.disable(logging.WARNING)
    module, _, function = sys.argv[1].rpartition(".")
    work = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    result = asyncio.run(work(**json.loads(sys.argv[2])))
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
