"""The HTTP service: server.py listens, app.py routes, endpoints.py validates, scheduler.py batches and runs."""
