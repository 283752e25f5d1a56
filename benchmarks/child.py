"""One measurement in a process of its own: `python -m benchmarks.child MODULE.FUNCTION JSON`."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
from typing import Any


def main() -> None:
    logging.disable(logging.WARNING)
    module, _, function = sys.argv[1].rpartition(".")
    work = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    asyncio.run(_measure(work, json.loads(sys.argv[2])))


async def _measure(work: Any, arguments: dict[str, Any]) -> None:
    result = await work(**arguments)
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # taskiq's receiver does not end when it is cancelled


if __name__ == "__main__":
    main()
