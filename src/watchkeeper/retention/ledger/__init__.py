"""Run bookkeeping: claims, leases, interrupts and status."""
