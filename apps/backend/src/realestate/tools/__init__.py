"""Tools for chat agents: one endpoint, with a metric and an audit entry per call."""

from realestate.tools._routes import call_tool

__all__ = ["call_tool"]
