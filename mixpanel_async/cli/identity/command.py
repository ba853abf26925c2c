"""Group `mixpanel-async identity`: registers its commands."""

from __future__ import annotations

from typing import Final

import typer

from ..examples import epilog
from .audit import audit
from .repair.apply_command import apply
from .repair.plan_command import plan
from .repair.verify_command import verify
from .simulate import simulate

identity: Final = typer.Typer(
    help="Find the faults in the ids of a project, and join ids that belong to one person.\n\n"
    "Exit status: 0 success; 1 a file is damaged or a request failed; 2 invalid command line or unusable file; 3 more "
    "findings than --fail-on allows, or pairs of ids that are not joined; 130 interrupted.\n\n"
    "Credentials are read from MIXPANEL_SERVICE_ACCOUNT_USERNAME, MIXPANEL_SERVICE_ACCOUNT_SECRET and "
    "MIXPANEL_PROJECT_ID, or MIXPANEL_API_SECRET; apply also needs MIXPANEL_TOKEN.",
    epilog=epilog("identity"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
identity.command(epilog=epilog("identity audit"), short_help="Find the faults in the ids of a raw export.")(audit)
identity.command(epilog=epilog("identity simulate"), short_help="Try another ID merge system.")(simulate)
identity.command(epilog=epilog("identity plan"), short_help="Plan the identity calls that join pairs of ids.")(plan)
identity.command(epilog=epilog("identity apply"), short_help="Send the calls of a plan.")(apply)
identity.command(epilog=epilog("identity verify"), short_help="Read back which pairs of a plan are joined.")(verify)
