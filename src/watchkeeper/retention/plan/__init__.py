"""What a run would delete, and what is past its horizon and still there."""
