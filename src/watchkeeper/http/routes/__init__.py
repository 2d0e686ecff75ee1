"""Route templates of dispatched requests: one file per framework, none of which imports it."""
