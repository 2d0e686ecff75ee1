"""What a scrape reads: all series as text."""
