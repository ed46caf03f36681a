"""Beyond one process: two replicas behind haproxy, the manifests, and the packages of the container image.

Run by make test-replicas. The printed rates are of this machine, with the load generator on the same cores.
"""

import concurrent.futures
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import psutil
import pytest
from compress.loadtest import generator as load
from compress.loadtest.processes import HOST, free_port
from compress.serving.limits import DRAIN_SECONDS, GRACE_SECONDS
from conftest import ROOT
from test_http import ALIVE, response_of, send_at
from test_service import STATIC, get, post, service, texts  # noqa: F401  (texts is a fixture)

HAPROXY = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
pytestmark = pytest.mark.replicas


def needs_two(test):
    """Two replicas need haproxy and two cores."""
    test = pytest.mark.skipif(HAPROXY is None, reason="no haproxy: apt-get install haproxy")(test)
    return pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two replicas need two cores")(test)


def replica(folder, core):
    """A service with one worker on one core."""
    return service(folder, STATIC, python=("taskset", "--cpu-list", str(core), sys.executable), workers=1)


@contextmanager
def haproxy(first, second):
    """(port, process) of haproxy in front of the services on these two ports."""
    port = free_port()
    ports = {"PORT": str(port), "FIRST": str(first), "SECOND": str(second)}
    with subprocess.Popen([HAPROXY, "-db", "-f", ROOT / "deploy/haproxy.cfg"], env=os.environ | ports) as balancer:
        try:
            while get(port, "/readyz")[0] != 200:
                assert balancer.poll() is None
                time.sleep(0.05)
            time.sleep(1)
            yield port, balancer
        finally:
            balancer.kill()


@pytest.fixture
def replicas(smoke):
    """(port of haproxy, [(port, process) of each replica])."""
    with replica(smoke[0], 0) as first, replica(smoke[0], 1) as second, haproxy(first[0], second[0]) as (port, _):
        yield port, [first, second]


def under_load(port, requests, rate, act):
    """The outcome of 4 s of Poisson load; `act` is called after 1.5 s."""
    moments = load.poisson(rate, int(4 * rate), 0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        acting = pool.submit(lambda: (time.sleep(1.5), act()))
        outcome = load.open_loop(HOST, port, requests, moments)
        acting.result()
    return outcome


@needs_two
def test_two_replicas_have_a_higher_rate_than_one(replicas, texts):  # noqa: F811
    port, both = replicas
    requests = load.payloads(texts, HOST, "/process")
    rates = {}
    for name, target in (("one", both[0][0]), ("two", port)) * 3:
        outcome = load.closed_loop(HOST, target, requests, 16, 2.0)
        rates.setdefault(name, []).append(outcome.completed_rps)
    one, two = (float(np.median(rates[name])) for name in ("one", "two"))
    print(f"\none replica {one:.0f}/s, two behind haproxy {two:.0f}/s: {two / one:.2f} times")
    assert two > one


@needs_two
def test_a_drained_replica_costs_no_request(replicas, texts):  # noqa: F811
    port, both = replicas
    requests = load.payloads(texts, HOST, "/process")
    outcome = under_load(port, requests, 100, lambda: both[0][1].send_signal(signal.SIGTERM))
    assert both[0][1].wait(25) == 0
    assert set(outcome.status.tolist()) == {200}
    print(f"\n{len(outcome.status)} requests, none lost, p99 {1000 * np.quantile(outcome.latency, 0.99):.0f} ms")


@needs_two
def test_a_killed_replica_costs_at_most_its_open_requests(replicas, texts):  # noqa: F811
    port, both = replicas
    requests = load.payloads(texts, HOST, "/process")
    outcome = under_load(port, requests, 100, both[0][1].kill)
    lost = int((outcome.status != 200).sum())
    print(f"\n{len(outcome.status)} requests, {lost} lost")
    assert lost <= 16
    assert (outcome.status[-100:] == 200).all()


@pytest.mark.skipif(HAPROXY is None, reason="no haproxy: apt-get install haproxy")
def test_haproxy_loses_no_request_when_idle_connections_close(artifact):
    """200 requests reach haproxy while the services close the connections that it holds, and before it can see that.

    Without its retries some would be lost: stopped past the close, it sends on connections that have ended.
    """
    with ExitStack() as stack:
        services = [stack.enter_context(service(ROOT, artifact, keep_alive_s=1, workers=1)) for _ in range(2)]
        port, balancer = stack.enter_context(haproxy(*(port for port, _ in services)))
        clients = [stack.enter_context(socket.create_connection((HOST, port), timeout=20)) for _ in range(200)]
        started = time.monotonic()
        assert {response[:12] for response in send_at(clients, [started] * 200)} == {b"HTTP/1.1 200"}
        read = time.monotonic()
        held = [at.raddr.port for at in psutil.Process(balancer.pid).net_connections("tcp4") if at.raddr]
        assert {services[0][0], services[1][0]} <= set(held)
        time.sleep(started + 1 + GRACE_SECONDS - 0.2 - time.monotonic())
        balancer.send_signal(signal.SIGSTOP)
        for client in clients:
            client.sendall(ALIVE)
        time.sleep(read + 1 + GRACE_SECONDS + 0.2 - time.monotonic())
        balancer.send_signal(signal.SIGCONT)
        assert {response_of(client)[:12] for client in clients} == {b"HTTP/1.1 200"}


def test_the_manifests_are_valid_and_fit_the_service():
    import kubernetes_validate
    import yaml

    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text("utf-8")))
    assert {d["kind"] for d in documents} == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)
    pod = documents[0]["spec"]["template"]["spec"]
    probes = {pod["containers"][0][f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"/readyz", "/livez"}
    wait = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]
    assert pod["terminationGracePeriodSeconds"] >= int(wait) + DRAIN_SECONDS
    image = (ROOT / "deploy/Dockerfile").read_text("utf-8")
    assert not re.search(r"--(workers|threads)", image + str(pod)), "the service counts the cores itself"


def test_the_service_runs_with_the_packages_of_the_image_alone(smoke, tmp_path):
    recipe = (ROOT / "deploy/Dockerfile").read_text("utf-8")
    packages = re.search(r"--constraint requirements.txt \\\n\s+(.+)\n", recipe).group(1).split()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "image"], check=True)
    python = tmp_path / "image/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "requirements.txt", *packages]
    subprocess.run(install, check=True, timeout=300)
    with service(smoke[0], STATIC, python=(python,)) as (port, _):
        assert post(port, "A film that grows on you.")[0] == 200
