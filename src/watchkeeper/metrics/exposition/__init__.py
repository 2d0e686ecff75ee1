"""What a scrape shows: the series of all workers, and prometheus_client's, as text."""
