"""Peer LitServe: FastAPI processes put requests on a queue between processes, from which workers collect batches.

A worker opens a batch and takes what arrives within batch_timeout, then runs it. The default, 0, polls the queue
without a pause and burns the core that the models need (litserve/loops/base.py, collate_requests); 1 ms is the step in
which it polls otherwise. The HTTP side gets one process, since on two cores the workers need both; the default is one
per worker. Settings: https://lightning.ai/docs/litserve/features/batching.
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
