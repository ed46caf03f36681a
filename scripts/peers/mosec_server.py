"""Peer mosec: a Rust front collects batches for Python worker processes, which take turns at one queue over a socket.

A batch goes out when it is full or its first text has waited max_wait_time: here the least that mosec takes, 1 ms (its
default is 10). While workers are busy the queue fills by itself; while they are idle a wait costs its length in latency
and brings nothing: 1, 5 and 10 ms gave the same throughput. Both settings and the path are arguments of
mosec.Server.append_worker, whose docstring is their reference (https://github.com/mosecorg/mosec).
Over its capacity of 1024 requests it answers 429, after 3 seconds 408: its defaults, left alone.
Example: python scripts/peers/mosec_server.py --model FOLDER --port 8000 --workers 2 --threads 1 --batch 8
"""

import os

import mosec
from common import HOST, PATH, Classifier, parser

WAIT_MS = 1


class Worker(mosec.Worker):
    def __init__(self):
        arguments = parser(__doc__).parse_args()  # a worker is spawned with the server's command line
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
