"""The only place that knows dramatiq. `dramatiq workers` imports this package, which sets the broker and the actors."""

from workers import actors

__all__ = ["actors"]
