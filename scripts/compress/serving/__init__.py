"""The HTTP service: scheduler.py batches and runs, app.py speaks HTTP, server.py listens, drains and exits."""
