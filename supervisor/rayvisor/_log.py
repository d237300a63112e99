"""Structured logs through structlog: dotted event names with keys.

If the program has configured structlog, that configuration holds, also for records of modules that were
imported before. If it has not, records go to the standard ``logging`` module, which shows warnings and above:
a library must not write to its user's standard output, as structlog's own default does. structlog itself is
never configured here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

__all__ = ["get_logger"]

_TO_LOGGING: Final[list[Processor]] = [
    structlog.stdlib.filter_by_level,
    structlog.stdlib.add_log_level,
    structlog.processors.format_exc_info,
    structlog.processors.KeyValueRenderer(key_order=["event"]),
]


class _LibraryLogger:
    """structlog's logger if the program has configured structlog by now, one of ``logging`` otherwise."""

    __slots__ = ("_structured", "_to_logging")

    def __init__(self, name: str) -> None:
        self._structured = structlog.get_logger(name)
        self._to_logging = structlog.wrap_logger(
            logging.getLogger(name), processors=_TO_LOGGING, wrapper_class=structlog.stdlib.BoundLogger
        )

    def __getattr__(self, method: str) -> Any:
        return getattr(self._structured if structlog.is_configured() else self._to_logging, method)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of this name."""
    return cast("FilteringBoundLogger", _LibraryLogger(name))
