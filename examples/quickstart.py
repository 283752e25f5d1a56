import asyncio

from ag06 import Context, Event, Workflow

app = Workflow("shop")  # events live in .ag06/events.db; no server


@app.step("order.placed")
async def bill(event: Event, ctx: Context) -> None:
    await ctx.publish("order.billed", {"total": event.data["price"] * 1.2})


@app.step("order.billed")
async def thank(event: Event) -> None:
    print("billed:", event.data["total"])


async def main() -> None:
    async with app.running():
        await app.publish("order.placed", source="web", data={"price": 100})
        await app.drain()


asyncio.run(main())
