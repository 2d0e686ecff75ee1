"""What a run would delete, and the backlog of rows that are past their retention period."""
