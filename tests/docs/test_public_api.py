"""Signatures and docstrings of every public name."""

from __future__ import annotations

import pydoc

import pytest
from public_names import public_callables

from mixpanel_async import AsyncMixpanel

CALLABLES = public_callables()


@pytest.mark.parametrize("name", CALLABLES)
def test_signature_has_no_private_parameter(name: str) -> None:
    private = [one for one in CALLABLES[name].signature.parameters if one.startswith("_")]
    assert private == []


def test_help_shows_no_private_name() -> None:
    shown = pydoc.plain(pydoc.render_doc(AsyncMixpanel))
    assert "_environment" not in shown
    assert "track(" in shown
