"""Peer mosec: a Rust front end collects batches for Python worker processes, which share one queue over a socket.

A batch is sent when it is full or its first text has waited for max_wait_time: here 1 ms, the shortest that mosec
accepts (its default is 10). While workers are busy the queue fills by itself; while they are idle a wait only adds
latency: 1, 5 and 10 ms gave the same throughput. Both settings and the path are arguments of
mosec.Server.append_worker, whose docstring is their reference (https://github.com/mosecorg/mosec).
Beyond its capacity of 1024 requests it returns 429, and after 3 seconds 408: its defaults, unchanged.
Example: python scripts/peers/mosec_server.py --model FOLDER --port 8000 --workers 2 --threads 1 --batch 8
"""

import os

import mosec
from common import HOST, PATH, Classifier, parser

WAIT_MS = 1


class Worker(mosec.Worker):
    def __init__(self):
        arguments = parser(__doc__).parse_args()  # a worker process has the server's command line
        self.classify = Classifier(arguments.model, arguments.threads)

    def forward(self, data):
        return self.classify(data)


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    # mosec reads --port from the same command line, the rest from here.
    os.environ |= {"MOSEC_ADDRESS": HOST, "MOSEC_LOG_LEVEL": "warning"}
    server = mosec.Server()
    server.append_worker(
        Worker, num=arguments.workers, max_batch_size=arguments.batch, max_wait_time=WAIT_MS, route=PATH
    )
    server.run()
