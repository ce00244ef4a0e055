"""A Daytona-compatible server for one machine: development, tests and small single-machine use."""
