"""A cell of a notebook, or a line at a prompt, that is run again replaces what it declared."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ag06 import ConfigurationError, Workflow
from flows import SECONDS

STEP = """
@app.step("order")
async def bill(event):
    heard.append({mark!r})
"""
BATCH = """
@app.batch_step("order", max_wait=0.001)
def bill(events):
    heard.append({mark!r})
"""
KNOB = """
size = app.knob("size", low=1, high={high}, default=1)
"""


class Notebook:
    """Runs cells in one namespace, as IPython does: under a file name that is made from the cell's text."""

    def __init__(self, names: str = "/tmp/ipykernel_1/{hash}.py") -> None:
        self.names = names
        self.heard: list[Any] = []
        self.globals: dict[str, Any] = {"__name__": "__main__", "heard": self.heard}
        self.app = self.globals["app"] = Workflow("shop", store="memory://")

    def run(self, cell: str) -> None:
        exec(compile(cell, self.names.format(hash=abs(hash(cell))), "exec"), self.globals)


@pytest.mark.parametrize(
    "names", ["/tmp/ipykernel_1/{hash}.py", "<ipython-input-3-{hash}>", "<stdin>", "<python-input-7>"]
)
@pytest.mark.parametrize("cell", [STEP, BATCH])
async def test_a_cell_that_is_run_again_replaces_its_step(
    names: str, cell: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ag06.runtime")
    notebook = Notebook(names)
    notebook.run(cell.format(mark="first"))
    notebook.run(cell.format(mark="first"))
    notebook.run(cell.format(mark="second"))
    assert caplog.text.count("step 'bill' was declared again") == 2
    async with notebook.app.running():
        await notebook.app.publish("order")
        await notebook.app.drain(SECONDS)
    assert notebook.heard == ["second"]


async def test_a_step_that_is_replaced_after_a_publish_is_made_known_to_the_store() -> None:
    notebook = Notebook()
    notebook.run(STEP.format(mark="first"))
    await notebook.app.publish("order")
    notebook.run(STEP.format(mark="second").replace("order", "order.paid"))
    with pytest.raises(ConfigurationError, match=r"ag06 steps remove shop\.bill"):
        await notebook.app.publish("order.paid")
    await notebook.app.close()


def test_two_functions_of_one_name_are_a_mistake_in_a_cell_too() -> None:
    notebook = Notebook()
    with pytest.raises(ConfigurationError, match="has a step 'bill' already; give one a name="):
        notebook.run(STEP.format(mark="first") + STEP.format(mark="second"))


def test_another_function_under_the_same_name_is_a_mistake() -> None:
    notebook = Notebook()
    notebook.run(STEP.format(mark="first"))
    with pytest.raises(ConfigurationError, match="has a step 'bill' already"):
        notebook.run(STEP.format(mark="x").replace("def bill", "def pay").replace('"order"', '"order", name="bill"'))


@pytest.mark.parametrize(
    "globals_", [{"__name__": "shop"}, {"__name__": "__main__", "__file__": "/srv/shop.py"}], ids=["module", "script"]
)
def test_a_step_that_is_declared_twice_in_a_program_is_a_mistake(globals_: dict[str, Any]) -> None:
    notebook = Notebook("/srv/shop.py")
    notebook.globals.update(globals_)
    notebook.run(STEP.format(mark="first"))
    with pytest.raises(ConfigurationError, match="has a step 'bill' already"):
        notebook.run(STEP.format(mark="first"))


async def test_a_cell_that_is_run_while_the_workflow_runs_says_what_to_do_first() -> None:
    notebook = Notebook()
    notebook.run(STEP.format(mark="first"))
    notebook.run(KNOB.format(high=5))
    async with notebook.app.running():
        for cell in (STEP.format(mark="second"), KNOB.format(high=6)):
            with pytest.raises(ConfigurationError, match=r"leave running\(\) first"):
                notebook.run(cell)


def test_a_knob_that_is_declared_again_is_the_same_or_replaces_the_other() -> None:
    notebook = Notebook()
    notebook.run(KNOB.format(high=5))
    notebook.run(
        STEP.format(mark=1).replace(
            '"order"', '"order", concurrency=app.knob("calls", low=1, high=4, default=2, integer=True)'
        )
    )
    first = notebook.app.knobs["size"]
    notebook.run(KNOB.format(high=5))
    assert notebook.app.knobs["size"] is first
    notebook.run(KNOB.format(high=6))
    assert notebook.app.knobs["size"].high == 6
    with pytest.raises(ConfigurationError, match="has a knob 'size' already"):
        notebook.run(KNOB.format(high=7) + KNOB.format(high=8))


def test_a_step_that_uses_a_knob_survives_the_second_run_of_its_cell() -> None:
    notebook = Notebook()
    calls = 'calls = app.knob("calls", low=1, high=4, default=2, integer=True)\n'
    step = STEP.format(mark=1).replace('"order"', '"order", concurrency=calls')
    for _ in range(2):
        notebook.run(calls)
        notebook.run(step)
    assert notebook.app.steps["bill"].concurrency == 2
    asyncio.run(_runs(notebook.app))


async def _runs(app: Workflow) -> None:
    async with app.running():
        await app.drain(SECONDS)
