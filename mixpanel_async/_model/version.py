"""Version of the package, also read by the build."""

from typing import Final

VERSION: Final = "0.1.0"
