"""HW7, acceleration in production: five small classifiers for one HTTP service, and load on what the service serves.

Makes the models service-*, then starts a server for each variant of the profile's [serving] and sends it real texts: in
a closed loop to find its saturation, in an open loop at shares of that rate. Reads build/<profile>/models/; writes
models/, predictions/, records/ and serving/. A run that is finished and unchanged is kept; results/ is written by
collate_serving.py (make serve-bench does both). Use a machine that does nothing else meanwhile.
Example: python scripts/07_serve_bench.py --profile minilm --only finetuned
"""

import argparse
import signal
import sys

from compress.cli import main_guard, stage_parser

WARMUP_SECONDS = 1.0
CLIENTS = (1, 10, 50)  # the course's loads on the five-model service


def service(variant, context):
    """The parent, further trained on a task's labels, as an ONNX file of int8 whose activations have fixed ranges."""
    from compress.engines import ort
    from compress.engines.pytorch import load_model
    from compress.methods.export import CALIBRATION_SENTENCES, check_integers, copying, fresh, sentences
    from compress.methods.training import classifier, fine_tune
    from compress.stage import made

    seconds = None
    if variant.training is None:
        model = load_model(context.parent)
    else:
        model = classifier(context.parent, context.labels, context.seed)
        seconds = fine_tune(model, context.parent, variant.training, context)
        # Training may leave the forward pass under autocast: the weights go on in a model of their own.
        weights, model = model.state_dict(), type(model)(model.config)
        model.load_state_dict(weights)
    work = fresh(context.work)
    plain, target = work / "plain.onnx", work / ort.FILE
    ort.export(model.eval(), plain)
    ids = ort.of_one_length(sentences(context, "train"), CALIBRATION_SENTENCES)
    ort.quantize_static(plain, target, ids, "minmax")
    facts = ort.inspect(target)
    check_integers(facts)
    runtime = {"precision": ort.precision_of(facts)}
    return made(
        model,
        copying({target: target.name}),
        details=facts,
        train_seconds=seconds,
        backend="onnxruntime",
        runtime=runtime,
    )


def make_services(profile, args) -> int:
    """Makes and measures the models service-*; returns the number of those that failed."""
    from compress.data.tasks import load_tasks, service_variants
    from compress.stage import Stage

    tasks, failed = load_tasks(profile), 0
    for variant in service_variants(profile):
        stage = Stage(__file__, {"service": service}, profile, args)
        task = tasks[variant.task]
        stage.card = stage.card | {"fingerprint": task.fingerprint, "labels": task.labels}
        stage.splits = task.splits
        failed += stage.run_all([variant])
    return failed


def own_servers(profile, args) -> list:
    """A server per variant, those of the ablation, and the service with all five classifiers."""
    from compress.files import source_hash
    from compress.loadtest.bench import ABLATIONS, python_server
    from compress.paths import SCRIPTS

    serving = profile.serving
    source = source_hash(SCRIPTS / "serve.py")
    deadline = serving.load.deadline_ms
    common = ("--deadline-ms", str(deadline), "--max-wait-ms", str(deadline // 2))
    lanes = ("--lanes", str(args.threads))

    def server(name, variants, *options):
        folders = [profile.model(variant) for variant in variants]
        return python_server(name, folders, source, *common, *options)

    servers = [server(name, [name], *lanes) for name in serving.variants]
    ablated = serving.ablated
    for what, options in ABLATIONS.items():
        options = [option.format(threads=args.threads) for option in options]
        servers.append(server(f"{ablated}-{what}", [ablated], *lanes, *options))
    if profile.services:
        servers.append(server("five-services", profile.services, *lanes))
        servers[-1].many_models = True
    return servers


def peer_servers(profile, args, texts, origin) -> list:
    """Our server and every peer, each peer with the setting of its sweep that answered most, all on the same file.

    The five-model service has one peer, the course's design.
    """
    from compress.files import sha256_file
    from compress.loadtest import generator as load
    from compress.loadtest.bench import HOST, PATH, one_run, peer_server, running, serving_folder
    from compress.paths import SCRIPTS
    from compress.results.reading import BESIDE
    from peers import PEERS
    from tqdm import tqdm

    ablated, budget, folder = profile.serving.ablated, profile.serving.load, serving_folder(profile)
    requests = load.payloads(texts, HOST, PATH)
    models = [profile.model(ablated)]

    def server(name, peer, models, setting):
        its = PEERS[peer].name
        files = [f"{its}_server.py", "common.py", f"requirements-{its}.txt"]
        code = [sha256_file(SCRIPTS / "peers" / file) for file in files]
        return peer_server(name, peer, models, code, setting)

    def answered(server, setting) -> float:
        layout = "sweep-" + "x".join(map(str, setting))

        def go():
            return 0.0, load.closed_loop(HOST, server.port, requests, budget.connections, budget.saturation_seconds)

        with running([server], folder):
            load.closed_loop(HOST, server.port, requests, budget.connections, WARMUP_SECONDS)
            run = one_run(server, [server], folder, layout, 0, 0, budget, origin, go)
        return run.outcome.answered_rps

    best = {}
    for peer, setting in tqdm([(p, s) for p in PEERS for s in PEERS[p].sweep], desc="settings of peers", disable=None):
        rate = answered(server(peer, peer, models, setting), setting)
        if rate > best.get(peer, (0, None))[0]:
            best[peer] = rate, setting
    ours = next(s for s in own_servers(profile, args) if s.name == ablated)
    ours.name = ablated + BESIDE
    servers = [ours, *(server(peer, peer, models, setting) for peer, (_, setting) in best.items())]
    if profile.services:
        folders = [profile.model(name) for name in profile.services]
        servers.append(server("peer-course-five-services", "peer-course", folders, PEERS["peer-course"].sweep[0]))
        servers[-1].many_models = True
    return servers


def bench(profile, servers, texts, origin) -> None:
    """Every run that is not there yet: servers take turns, so that a drifting machine moves all of them.

    Our server beside its peers is also asked as often as CALM of each peer's saturation: there their latencies compare.
    """
    import numpy as np
    from compress.loadtest import generator as load
    from compress.loadtest.bench import HOST, PATH, one_run, remove_others, running, serving_folder
    from compress.results.reading import BESIDE, CALM
    from tqdm import tqdm

    budget = profile.serving.load
    folder = serving_folder(profile)
    requests = load.payloads(texts, HOST, PATH)

    def closed(server, clients, seconds):
        return lambda: (0.0, load.closed_loop(HOST, server.port, requests, clients, seconds))

    def opened(server, rate, repeat):
        count = max(
            budget.responses * max(rate / saturated[server.name], 1.0) / budget.repeats, rate * budget.least_seconds
        )
        moments = load.poisson(rate, int(np.ceil(count)), repeat)
        start = repeat * len(texts) // budget.repeats
        turned = requests[start:] + requests[:start]
        return lambda: (rate, load.open_loop(HOST, server.port, turned, moments))

    with running(servers, folder):
        for server in servers:
            load.closed_loop(HOST, server.port, requests, budget.connections, WARMUP_SECONDS)
        layouts = {"saturation": budget.connections} | {f"clients-{n}": n for n in CLIENTS}
        steps = [
            (repeat, layout, server)
            for repeat in range(budget.saturation_repeats)
            for layout in layouts
            for server in servers
            if layout == "saturation" or server.many_models
        ]
        found = {}
        for repeat, layout, server in tqdm(steps, desc="closed loop", disable=None):
            go = closed(server, layouts[layout], budget.saturation_seconds)
            run = one_run(server, servers, folder, layout, 0, repeat, budget, origin, go)
            if layout == "saturation":
                found.setdefault(server.name, []).append(run.outcome.answered_rps)
        saturated = {name: float(np.median(rates)) for name, rates in found.items()}
        loads = [(share, server) for share in budget.rates for server in servers]
        for ours in (server for server in servers if server.name.endswith(BESIDE)):
            peers = [server for server in servers if not server.ours and not server.many_models]
            loads += [(CALM * saturated[peer.name] / saturated[ours.name], ours) for peer in peers]
        steps = [(repeat, *one) for repeat in range(budget.repeats) for one in loads]
        for repeat, share, server in tqdm(steps, desc="open loop", disable=None):
            go = opened(server, share * saturated[server.name], repeat)
            one_run(server, servers, folder, "open-loop", share, repeat, budget, origin, go)
    for server in servers:
        remove_others(folder, server, budget)


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.data.prepare import load_splits
    from compress.errors import UserError
    from compress.provenance import provenance

    profile = load_profile(args.profile)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: no server is left behind
    if profile.serving is None:
        print(f"profile {profile.name} has no [serving]: nothing to do")
        return 0
    if args.seed != 0:
        print("times come from seed 0 alone: nothing to do for another seed")
        return 0
    if args.device != "cpu":
        print(f"the service runs on the CPU alone: nothing to do on {args.device}")
        return 0
    if failed := make_services(profile, args):
        return failed
    splits = load_splits(profile)
    texts = [text for name in ("test", "validation", "train") for text in splits[name]["text"]]
    origin = provenance(args.seed, args.threads, args.device)
    servers = peer_servers(profile, args, texts, origin) if args.peers else own_servers(profile, args)
    if args.only:
        if unknown := set(args.only) - {server.name for server in servers}:
            raise UserError(f"--only: the benchmark serves no {sorted(unknown)[0]!r}")
        servers = [server for server in servers if server.name in args.only]
    bench(profile, servers, texts, origin)
    print(f"{len(servers)} servers measured", file=sys.stderr)
    return 0


if __name__ == "__main__":
    parser = stage_parser(__doc__)
    parser.add_argument("--peers", action="store_true", help="measure the peers (make peers-env) beside our own server")
    main_guard(main, parser)
