"""Group `mixpanel-async identity`: registers its commands."""

from __future__ import annotations

from typing import Final

import typer

from .audit import audit
from .repair.apply_command import apply
from .repair.plan_command import plan
from .repair.verify_command import verify
from .simulate import simulate

identity: Final = typer.Typer(
    help="Find out what is wrong with the ids of a project, and join ids that belong to one person.\n\n"
    "Exit status: 0 success; 1 a file is damaged or a request failed; 2 invalid command line or unusable file; 3 more "
    "findings than --fail-on allows, or pairs of ids that are not joined; 130 interrupted.\n\n"
    "Credentials are read from MIXPANEL_SERVICE_ACCOUNT_USERNAME, MIXPANEL_SERVICE_ACCOUNT_SECRET and "
    "MIXPANEL_PROJECT_ID, or MIXPANEL_API_SECRET; apply also needs MIXPANEL_TOKEN.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
identity.command()(audit)
identity.command()(simulate)
identity.command()(plan)
identity.command()(apply)
identity.command()(verify)
