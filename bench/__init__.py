"""What a call costs on this machine: `make bench`. Measured on the stack that `sandhold dev` runs, against a floor."""
