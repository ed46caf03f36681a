"""Peer course: the service that the course hands out, rebuilt as the reference for the others.

A handler puts each text on an unbounded queue. One consumer collects a batch until no text has arrived for 10 ms, then
awaits the models one after another. The consequences, which our service must not have: a steady stream of texts never
closes a batch, and nothing limits its size; a model's call blocks the event loop; the second model waits for the first;
no request is ever refused; the raw body goes to the tokenizer, JSON quotes and escapes included; one failed batch ends
the consumer. Only the design is the course's: it runs on the libraries of our own service.
Example: python scripts/peers/course_server.py --model FOLDER [FOLDER ...] --port 8000 --workers 1 --threads 2 --batch 0
"""

import asyncio
import contextlib

from common import HOST, PATH, Classifier, parser
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

IDLE_SECONDS = 0.01


class Course:
    """The queue and its consumer; `models` are functions from texts to predictions, such as Classifier."""

    def __init__(self, models):
        self.models = models
        self.queue: asyncio.Queue = asyncio.Queue()

    async def process(self, request: Request) -> JSONResponse:
        return JSONResponse(await self.classify((await request.body()).decode()))

    async def classify(self, text: str) -> dict:
        future = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((text, future))
        return await future

    async def consume(self) -> None:
        while True:
            batch = [await self.queue.get()]
            with contextlib.suppress(TimeoutError):
                while True:
                    batch.append(await asyncio.wait_for(self.queue.get(), IDLE_SECONDS))
            texts, futures = zip(*batch, strict=True)
            by_model = [await self.infer(model, list(texts)) for model in self.models]
            for future, predictions in zip(futures, zip(*by_model, strict=True), strict=True):
                if not future.done():
                    future.set_result({name: value for one in predictions for name, value in one.items()})

    async def infer(self, model, texts: list[str]) -> list[dict]:
        return model(texts)  # awaited, but nothing in it yields to the event loop


def app(course: Course) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(_):
        consumer = asyncio.create_task(course.consume())
        yield
        consumer.cancel()

    return Starlette(routes=[Route(PATH, course.process, methods=["POST"])], lifespan=lifespan)


if __name__ == "__main__":
    import uvicorn

    options = parser(__doc__, models="+")
    arguments = options.parse_args()
    if arguments.workers != 1 or arguments.batch != 0:
        options.error("this design has one worker and unlimited batches: --workers 1 --batch 0")
    course = Course([Classifier(folder, arguments.threads) for folder in arguments.model])
    uvicorn.run(app(course), host=HOST, port=arguments.port, log_level="warning")
