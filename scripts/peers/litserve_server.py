"""Peer LitServe: FastAPI processes put requests on an inter-process queue, from which workers collect batches.

A worker opens a batch, takes what arrives within batch_timeout, and runs it. The default, 0, polls the queue without a
pause and takes the cores that the models need (collate_requests in litserve/loops/base.py). 1 ms, its usual polling
interval, gave the throughput of 5 ms at a lower latency. There is one HTTP process, because the workers need the cores;
a second one (the default) or the fast queue made no measurable difference.
Settings: https://lightning.ai/docs/litserve/features/batching and .../api-reference/litserver.
Example: python scripts/peers/litserve_server.py --model FOLDER --port 8000 --workers 2 --threads 1 --batch 8
"""

import litserve
from common import HOST, PATH, Classifier, parser

WAIT_SECONDS = 0.001


class API(litserve.LitAPI):
    def __init__(self, arguments):
        super().__init__(max_batch_size=arguments.batch, batch_timeout=WAIT_SECONDS, api_path=PATH)
        self.arguments = arguments

    def setup(self, device):
        self.classify = Classifier(self.arguments.model, self.arguments.threads)

    def predict(self, x):
        return self.classify(x)


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    server = litserve.LitServer(API(arguments), accelerator="cpu", workers_per_device=arguments.workers)
    server.run(host=HOST, port=arguments.port, num_api_servers=1, log_level="warning", generate_client_file=False)
