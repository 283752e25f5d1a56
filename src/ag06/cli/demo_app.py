"""The workflow of `ag06 demo`: GitHub's webhook deliveries, validated, enriched and counted for each repository."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from ag06 import Context, Event, Reject, Workflow

app = Workflow("demo", visibility_timeout=10.0, journal="off")  # a store that is away ends the demo at once

RECEIVED = "github.delivery"
CLASSIFIED = "github.classified"
ENRICHED = "github.enriched"
COUNTED = "repository.activity"
TYPES = (RECEIVED, CLASSIFIED, ENRICHED, COUNTED)

_CATEGORIES = {
    "push": "code",
    "create": "code",
    "delete": "code",
    "pull_request": "review",
    "pull_request_review": "review",
    "pull_request_review_comment": "review",
    "issues": "discussion",
    "issue_comment": "discussion",
    "discussion": "discussion",
    "check_run": "build",
    "check_suite": "build",
    "workflow_job": "build",
    "workflow_run": "build",
    "status": "build",
}


class Delivery(msgspec.Struct):
    """What GitHub sends: the `X-GitHub-Event` header, the action, the body."""

    event: str
    payload: dict[str, Any]
    action: str | None = None


class Classified(msgspec.Struct):
    """A delivery that was understood."""

    event: str
    category: str
    repository: str
    sender: str
    action: str | None = None


class Enriched(msgspec.Struct):
    """A delivery with what a lookup adds."""

    category: str
    repository: str
    sender: str
    title: str


@app.step(RECEIVED, concurrency=16)
async def classify(event: Event[Delivery], ctx: Context) -> None:
    """Check a delivery and say what kind it is; one that names no sender cannot be attributed and is rejected."""
    delivery = event.data
    sender = delivery.payload.get("sender")
    if not isinstance(sender, dict) or "login" not in sender:
        raise Reject(f"a {delivery.event!r} delivery without a sender cannot be attributed")
    repository = delivery.payload.get("repository") or {}
    await ctx.publish(
        CLASSIFIED,
        Classified(
            event=delivery.event,
            category=_CATEGORIES.get(delivery.event, "administration"),
            repository=repository.get("full_name") or "(account)",
            sender=sender["login"],
            action=delivery.action,
        ),
    )


@app.step(CLASSIFIED, concurrency=16)
async def enrich(event: Event[Classified], ctx: Context) -> None:
    """Add what another service would know; the pause stands for its answer."""
    known = event.data
    await asyncio.sleep(0.005)
    title = f"{known.sender} {known.action or 'sent'} {known.event}"
    await ctx.publish(
        ENRICHED, Enriched(known.category, known.repository, known.sender, title), subject=known.repository
    )


@app.step(ENRICHED, concurrency=16)
async def aggregate(event: Event[Enriched], ctx: Context) -> None:
    """Count for each repository: one repository's deliveries come in order and one at a time, in any process."""
    await ctx.publish(
        COUNTED,
        {"repository": event.data.repository, "category": event.data.category, "last": event.data.title},
        subject=event.data.repository,
    )
