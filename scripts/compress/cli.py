"""The options that the scripts share, and how an error ends a command."""

import argparse
import os
import sys
import warnings

from compress.cpu import cores
from compress.errors import UserError, disk_is_full
from compress.paths import DEFAULT_PROFILE, PROFILES, ROOT


def profile_parser(doc: str) -> argparse.ArgumentParser:
    """The parser of a script: its docstring as help, and the profile."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.toml")))
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help=f"one of: {known} (default: %(default)s)")
    return parser


def run_parser(doc: str) -> argparse.ArgumentParser:
    """The parser of a script that works on one seed's models."""
    parser = profile_parser(doc)
    parser.add_argument("--seed", type=natural, default=0, help="training seed (default: %(default)s)")
    add_device(parser)
    return parser


def build_parser(doc: str, nargs: str | None = None) -> argparse.ArgumentParser:
    """The parser of a numbered script: which variant to build, with which seed, where; nargs "?" makes it optional."""
    parser = run_parser(doc)
    parser.add_argument("variant", nargs=nargs, help="the variant of the profile to build; its parents must be built")
    parser.add_argument("--train-device", choices=("cpu", "cuda"), help="where models are trained (default: --device)")
    parser.add_argument("--number", default="", help="its place in the plan, shown in messages")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    about = "where models are measured (default: %(default)s)"
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=about)


def base_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError("must be 1 to 65535")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def thread_count(text: str) -> int:
    """A number of threads or processes: at most one per core; says on standard error if it was larger."""
    value, most = positive(text), cores()
    if value > most:
        print(
            f"warning: {value} threads are more than cores ({most}), which slows all of them: using {most}",
            file=sys.stderr,
        )
    return min(value, most)


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def seed_list(text: str) -> list[int]:
    """Seeds separated by spaces, in ascending order, each once."""
    try:
        seeds = sorted({natural(word) for word in text.split()})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers separated by spaces, for example '0 1 2'") from None
    if not seeds:
        raise argparse.ArgumentTypeError("give at least one seed")
    return seeds


def main_guard(main, parser: argparse.ArgumentParser) -> None:
    """Runs main(args); a UserError ends the command with its text and status 1, without a traceback."""
    replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # in any locale: labels and texts have all characters
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    args = parser.parse_args()
    ignore_known_warnings()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["LC_ALL"] = "C.UTF-8"  # of programs that are started: pandoc reads paths, g++ writes messages
    # Threads that spin while they wait lose most of their speed as soon as anything else runs on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        sys.exit(main(args))
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted: finished work is kept; run the same command to resume")
    except Exception as error:
        if isinstance(error, PermissionError) and error.filename:
            sys.exit(f"error: {error.filename}: this user may not read or write it; change its owner or permissions")
        if not disk_is_full(error):
            raise
        sys.exit(f"error: {ROOT}: the disk is full; free some space and run the same command again ({error})")


def replace_closed_streams() -> None:
    """Opens the null device in place of closed standard streams: the next opened file would get their number.

    sys.stdin stays None, so that a script can tell that it is closed.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")


def ignore_known_warnings() -> None:
    """Hides warnings that say nothing about this repository's use of the libraries."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="mtime may not be reliable")  # Trainer then orders checkpoints by number
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # the pinned version still has it
