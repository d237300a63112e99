"""Structured logs: dotted event names with keys, through structlog.

Where the program has configured structlog, that configuration holds. Where it has not, records go to the
standard ``logging`` module, which shows warnings and worse: a library must not write to its user's
standard output on its own account.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

__all__ = ["get_logger"]

_PLAIN: Final[list[Processor]] = [
    structlog.stdlib.filter_by_level,
    structlog.stdlib.add_log_level,
    structlog.processors.format_exc_info,
    structlog.processors.KeyValueRenderer(key_order=["event"]),
]


def _settings() -> tuple[Any, ...]:
    config = structlog.get_config()
    return (list(config["processors"]), *(config[key] for key in ("wrapper_class", "logger_factory")))


_UNTOUCHED = None if structlog.is_configured() else _settings()


def _configured() -> bool:
    """Whether the program has configured structlog.

    ``structlog.testing.capture_logs`` configures it, too, and puts everything back: what is as it was before
    anybody touched it counts as not configured.
    """
    return structlog.is_configured() and _settings() != _UNTOUCHED


class _Logger:
    """Looks at each call whether structlog is configured: a program may do so after importing us."""

    __slots__ = ("_name", "_plain")

    def __init__(self, name: str) -> None:
        self._name = name
        self._plain = structlog.wrap_logger(
            logging.getLogger(name), processors=_PLAIN, wrapper_class=structlog.stdlib.BoundLogger
        )

    def __getattr__(self, method: str) -> Any:
        logger = structlog.get_logger(self._name) if _configured() else self._plain
        return getattr(logger, method)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of this name."""
    return cast("FilteringBoundLogger", _Logger(name))
