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
        event_id = await app.publish("order.placed", source="web", data={"price": 100})
        print("stored as", event_id)  # None: the same order was stored within the last five minutes
        await app.drain()


if __name__ == "__main__":
    asyncio.run(main())
