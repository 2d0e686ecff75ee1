"""The ledger of runs: claims, leases, interrupts, status."""
