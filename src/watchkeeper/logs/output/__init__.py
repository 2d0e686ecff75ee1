"""Where lines leave the process."""
