"""A plugin whose dependency is not there."""

import no_such_dependency  # noqa: F401
