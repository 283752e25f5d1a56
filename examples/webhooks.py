"""Webhooks as they come: typed data, the sender's delivery id against repetitions, order by subject, a retry."""

import asyncio

import msgspec

from ag06 import Context, Event, Reject, Retry, Workflow

app = Workflow("hooks", store="memory://")  # for the example; leave store out to keep the events


class Payment(msgspec.Struct):
    """What the payment service sends."""

    account: str
    cents: int


attempts = 0
balance: dict[str, int] = {}


@app.step("payment.received", retry=Retry(attempts=3, initial=0.01))
async def book(event: Event[Payment], ctx: Context) -> None:
    """Book a payment; fails once, as services do."""
    global attempts
    attempts += 1
    if attempts == 1:
        raise ConnectionError("the ledger is away")
    if event.data.cents <= 0:
        raise Reject("a payment must be above 0")
    await ctx.publish("payment.booked", event.data, subject=event.data.account)


@app.batch_step("payment.booked", max_size=50, max_wait=0.01)
async def sum_up(events: list[Event[Payment]]) -> None:
    """Add up; one account's payments come in order."""
    for event in events:
        balance[event.data.account] = balance.get(event.data.account, 0) + event.data.cents


async def main() -> None:
    async with app.running():
        for delivery_id, cents in [("d1", 500), ("d2", 250), ("d1", 500), ("d3", -1)]:
            event_id = await app.publish(
                "payment.received",
                source="bank",
                data={"account": "alice", "cents": cents},
                idempotency_key=delivery_id,
            )
            print(delivery_id, "stored" if event_id else "duplicate")
        await app.drain()
        print(balance, "dead letters:", (await app.events.stats()).dead_letters)


if __name__ == "__main__":
    asyncio.run(main())
