"""The Real Estate backend: listings, agent tools, webhooks and DM pairing, monitored by Watchkeeper."""

__version__ = "0.1.0"
