"""The route template that an app chose for a request, one file a framework."""
