"""Feature flags evaluated in this process, from definitions that Mixpanel serves.

    MIXPANEL_TOKEN=... python examples/feature_flags.py

The program starts even if Mixpanel is unreachable: without definitions, every visitor gets the fallback. Each visitor's
exposure is reported at most once an hour.
"""

from __future__ import annotations

import asyncio

from mixpanel_async import AsyncMixpanel
from mixpanel_async.flags import LocalFlags, SelectedVariant

FLAGS = LocalFlags(poll_interval=30.0, exposure_window=3600.0)
CLASSIC = SelectedVariant({"layout": "classic"}, variant_key="control")
VISITORS = {"user-1": "free", "user-2": "pro", "user-3": "pro"}


def checkout(mp: AsyncMixpanel, visitor: str, plan: str) -> str:
    """Return the visitor's checkout page. Evaluation and exposure tracking do not block."""
    context = {"distinct_id": visitor, "custom_properties": {"plan": plan}}
    variant = mp.local_flags.get_variant("checkout", CLASSIC, context)
    why = "" if variant.fallback_reason is None else f" ({variant.fallback_reason.kind})"
    return f"{visitor}: {variant.variant_value['layout']}{why}"


async def main() -> None:
    async with AsyncMixpanel.from_env(local_flags=FLAGS) as mp:
        if not await mp.local_flags.wait_ready(timeout=5):
            print("no flag definitions after 5 seconds; using fallbacks")
        for visitor, plan in VISITORS.items():
            print(checkout(mp, visitor, plan))
        # A second page view: the exposure is not reported again.
        for visitor, plan in VISITORS.items():
            checkout(mp, visitor, plan)


if __name__ == "__main__":
    asyncio.run(main())
