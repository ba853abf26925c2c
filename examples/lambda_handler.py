"""AWS Lambda function that tracks, and whose events have left before it returns.

    Handler: lambda_handler.handler, or lambda_handler.async_handler
    MIXPANEL_TOKEN=... python examples/lambda_handler.py          # two invocations on this machine

The client is created once, when Lambda imports this module, and keeps its connections over all invocations. Lambda
freezes the process between them, so each invocation ends with a delivery: at most one second, and at most half of the
time that it has left. What Mixpanel did not accept in time is logged and waits for the next invocation.

Each event has the id of the request as `insert_id` and a time from the input, so an invocation that Lambda repeats is
counted once. The increment of a repeated invocation is not: it adds twice.

An environment that Lambda ends while records wait loses them. If that must not happen, use `track_immediate`, which
raises if Mixpanel did not accept the event.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from mixpanel_async.integrations.aws_lambda import MixpanelIntegration

mixpanel = MixpanelIntegration(flush_timeout=1.0)


@dataclass(frozen=True)
class Context:
    """The part of Lambda's context that the handlers use. Lambda repeats a failed invocation with the same id."""

    aws_request_id: str


@mixpanel.handler
def handler(event: dict[str, Any], context: Context) -> dict[str, int]:
    order = {"item": event["item"]}
    mixpanel.blocking.track(
        event["user"], "Order placed", order, time=event["ordered_at"], insert_id=context.aws_request_id
    )
    mixpanel.blocking.people_increment(event["user"], {"orders": 1})
    return {"statusCode": 200}


@mixpanel.handler
async def async_handler(event: dict[str, Any], context: Context) -> dict[str, int]:
    order = {"item": event["item"]}
    await mixpanel.client.track(
        event["user"], "Order placed", order, time=event["ordered_at"], insert_id=context.aws_request_id
    )
    await mixpanel.client.people_increment(event["user"], {"orders": 1})
    return {"statusCode": 200}


if __name__ == "__main__":
    now = time.time()
    print(handler({"user": "user-1", "item": "tea", "ordered_at": now}, Context("request-1")))
    print(async_handler({"user": "user-1", "item": "cup", "ordered_at": now}, Context("request-2")))
    stats = mixpanel.client.stats()
    print(f"{stats.delivered} records delivered, {stats.pending} waiting")
