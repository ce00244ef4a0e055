"""The whole stack on one machine: child processes, started in order, supervised, and gone with their parent."""
