"""Which checkout each visitor sees: flags evaluated in this process, from definitions that Mixpanel serves.

    MIXPANEL_TOKEN=... python examples/feature_flags.py

The program starts whether Mixpanel answers or not: without definitions everybody gets the fallback. Each visitor's
exposure is reported once an hour at most.
"""

from __future__ import annotations

import asyncio

from mixpanel_async import AsyncMixpanel
from mixpanel_async.flags import LocalFlags, SelectedVariant

FLAGS = LocalFlags(poll_interval=30.0, exposure_window=3600.0)
CLASSIC = SelectedVariant({"layout": "classic"}, variant_key="control")
VISITORS = {"user-1": "free", "user-2": "pro", "user-3": "pro"}


def checkout(mp: AsyncMixpanel, visitor: str, plan: str) -> str:
    """The page that a visitor gets. Neither the evaluation nor its exposure waits for anything."""
    context = {"distinct_id": visitor, "custom_properties": {"plan": plan}}
    variant = mp.local_flags.get_variant("checkout", CLASSIC, context)
    why = "" if variant.fallback_reason is None else f" ({variant.fallback_reason.kind})"
    return f"{visitor}: {variant.variant_value['layout']}{why}"


async def main() -> None:
    async with AsyncMixpanel.from_env(local_flags=FLAGS) as mp:
        if not await mp.local_flags.wait_ready(timeout=5):
            print("no definitions yet")
        for visitor, plan in VISITORS.items():
            print(checkout(mp, visitor, plan))
        # A second page view: the exposure has been reported.
        for visitor, plan in VISITORS.items():
            checkout(mp, visitor, plan)


if __name__ == "__main__":
    asyncio.run(main())
