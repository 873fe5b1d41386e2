"""Services as supervised processes on this machine. Nothing started here outlives the process that started it."""
