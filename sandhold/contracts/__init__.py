"""What every part of Sandhold agrees on: names, messages, tools, errors. Imports nothing of ours."""
