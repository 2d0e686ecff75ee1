"""The tools that chat agents act through: one endpoint, one clock, one audit entry a call."""

from realestate.tools._routes import call_tool

__all__ = ["call_tool"]
