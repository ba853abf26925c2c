"""Methods of the emulator that read and set feature flags."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ..flags.flags import single_variant_definition
from .app import EmulatorState


class FlagControls:
    """Methods of the emulator that read and set feature flags."""

    _state: EmulatorState

    def flags(self) -> list[dict[str, Any]]:
        """Return the complete definitions of all feature flags."""
        with self._state.lock:
            return copy.deepcopy(self._state.flags.all())

    def set_flags(self, definitions: Iterable[Mapping[str, Any]]) -> None:
        """Replace all feature flags, until they are set again or the file of `flags` changes.

        Args:
            definitions: definitions of feature flags, as for the option `flags`.

        Raises:
            ValueError: if a definition is malformed. The flags are unchanged in that case.
        """
        with self._state.lock:
            self._state.flags.replace(definitions)

    def set_flag(self, key: str, value: Any = True, *, variant_key: str = "on") -> None:  # noqa: FBT002  a flag's value
        """Set a feature flag that has the same value for every person.

        Example:
            ```python
            from mixpanel_async.emulator import Emulator

            emulator = Emulator()
            emulator.set_flag("new-checkout", True)
            emulator.set_flag("layout", {"columns": 2}, variant_key="wide")
            assert len(emulator.flags()) == 2
            ```

        Args:
            key: key of the flag. An existing flag with this key is replaced.
            value: any JSON value.
            variant_key: name of the only variant.

        Raises:
            ValueError: if the key is empty or the value cannot be encoded as JSON.
        """
        with self._state.lock:
            self._state.flags.put(single_variant_definition(key, value, variant_key))

    def remove_flag(self, key: str) -> None:
        """Remove a feature flag. Does nothing if the flag does not exist.

        Args:
            key: key of the flag.
        """
        with self._state.lock:
            self._state.flags.remove(key)
