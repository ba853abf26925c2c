"""Lambda function of test_aws_lambda.py. Each line of its input is one invocation; it prints the result of each."""

from __future__ import annotations

import os
import sys

from mixpanel_async import AsyncMixpanel, BatchPolicy
from mixpanel_async.integrations.aws_lambda import MixpanelIntegration


def make_client() -> AsyncMixpanel:
    # Nothing is delivered unless the decorator flushes.
    return AsyncMixpanel.from_env(batching=BatchPolicy(linger=3600.0))


mixpanel = MixpanelIntegration(make_client, flush_timeout=float(os.environ.get("FLUSH_TIMEOUT", "5.0")))


@mixpanel.handler
def plain(event: int, context: object) -> int:
    mixpanel.blocking.track("user", "Invoked", {"number": event})
    mixpanel.blocking.people_increment("user", {"invocations": 1})
    return event


@mixpanel.handler
async def coroutine(event: int, context: object) -> int:
    await mixpanel.client.track("user", "Invoked", {"number": event})
    await mixpanel.client.people_increment("user", {"invocations": 1})
    return event


if __name__ == "__main__":
    handler = {"plain": plain, "coroutine": coroutine}[sys.argv[1]]
    for line in sys.stdin:
        print(handler(int(line), None), flush=True)
