"""Public programs on fastrnn: a program's own model beside itself on torch.nn, same weights, same batches, one thread.

    python benchmarks/clients.py pfrl                     # in this environment
    python benchmarks/clients.py --install pfrl skorch    # each in an environment that is made for it, then removed
    python benchmarks/clients.py --install                # all of them, into results/clients.csv

`client_models.py` has the programs; --table takes a file of yours instead. A step of training on fastrnn may differ
from torch.nn's by FACTOR times what torch.nn's own results move when each weight moves to a neighbouring number, plus
UNITS in the last place. Only then are the steps of both sides timed, in turns.

Exit status: 0, or 1 if a client differed by more, failed on fastrnn alone, or if no client could be compared. A package
that cannot be installed, imported or run on torch.nn is reported and changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import venv
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from client_models import CLIENTS, Client
from torch import Tensor, nn

import fastrnn
from fastrnn.bench.environment import environment, warn_if_busy
from fastrnn.bench.gate import FEW, deviation, largest
from fastrnn.bench.timing import ClockRounds, Pace, interleave, spread

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "clients.csv"
PLACE = ("device", "torch", "fastrnn", "commit")
SIDES = ("torch", "ours")
TIMES = ("median", "p20", "p80")
COLUMNS = ("date", *PLACE, "load", "client", "version", "licence", "model", "by", "layers", "backends", "status")
COLUMNS += ("detail", "difference", "allowed", "repeats", *(f"{s}_ms_{t}" for s in SIDES for t in TIMES), "ratio")
NUDGES, FACTOR = 2, 4
UNITS = 32  # sums over thousands of rows, in another order
SMALL = 1e-2  # a gradient smaller than this share of the largest one may be the rounding of a zero
LIMIT_S = 600
FAILED = ("WRONG", "error")
Row = dict[str, str]


class Unusable(Exception):
    """A package that cannot be compared, with the reason as its text."""


class Side(NamedTuple):
    """A client's model, and the call that gives the loss and other results."""

    model: nn.Module
    call: Callable[[], Sequence[Tensor]]

    def step(self) -> dict[str, Tensor]:
        """Results and gradients of a step of training, or results alone where the loss has no gradient."""
        torch.manual_seed(1)  # for programs that draw dropout masks
        self.model.zero_grad(set_to_none=True)
        loss, *others = self.call()
        if loss.requires_grad:
            loss.backward()
        found = {"loss": loss, **{f"output {k}": t for k, t in enumerate(others)}}
        return found | {f"grad {name}": p.grad for name, p in self.model.named_parameters() if p.grad is not None}


class Verdict(NamedTuple):
    """The tensor that is worst by the share of what is allowed: its difference, what is allowed, its name."""

    difference: float
    allowed: float
    tensor: str

    @property
    def share(self) -> float:
        """Infinite where there is no number to compare."""
        return math.inf if math.isnan(self.difference) else self.difference / self.allowed


def built(client: Client, ours: bool) -> Side:
    """A side of a client, with the same random numbers for both."""
    torch.manual_seed(0)
    if ours and client.by == "patch_torch":
        with fastrnn.patch_torch():
            return Side(*client.build())
    side = Side(*client.build())
    if ours:
        fastrnn.convert_(side.model)
    return side


def nudge_(model: nn.Module, seed: int) -> None:
    """Moves every weight to one of its two neighbours."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            towards = torch.where(torch.rand(p.shape, generator=generator) < 0.5, torch.inf, -torch.inf)
            p.copy_(torch.nextafter(p, towards.to(p.dtype)))


def judge(ours: dict[str, Tensor], theirs: dict[str, Tensor], nudged: Sequence[dict[str, Tensor]]) -> Verdict:
    """Ours against torch.nn's, by how far torch.nn's own results move with its weights.

    Gradients are of one kind, other results of another; all tensors of a kind are allowed the same share of their
    largest magnitude.
    """
    if ours.keys() != theirs.keys():
        return Verdict(math.inf, 1.0, f"{min(ours.keys() ^ theirs.keys())} of one side alone")
    verdicts = []
    for is_grad in (False, True):
        names = [name for name in theirs if name.startswith("grad ") == is_grad]
        top = max((largest(theirs[name]) for name in names), default=0.0)
        least = {name: top * (1 if theirs[name].numel() < FEW else SMALL) for name in names}
        scales = {name: max(largest(theirs[name]), least[name]) for name in names}
        own = max((deviation(run[name], theirs[name], scales[name]) for run in nudged for name in names), default=0.0)
        for name in names:
            dtype = theirs[name].dtype
            allowed = FACTOR * own + UNITS * torch.finfo(dtype).eps
            verdicts.append(Verdict(deviation(ours[name], theirs[name], scales[name]), allowed, name))
    return max(verdicts, key=lambda verdict: verdict.share)


def served(side: Side) -> tuple[list[nn.Module], list[str]]:
    """fastrnn's modules of a model, and the backends that a step's calls of them run on."""
    layers = [m for m in side.model.modules() if type(m).__module__.startswith("fastrnn.")]
    backends = set()

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        backends.add(fastrnn.explain(module, *args, **kwargs).backend)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in layers]
    side.step()
    for hook in hooks:
        hook.remove()
    return layers, sorted(backends)


def measure(client: Client, pace: Pace, tell: Callable[[dict[str, object]], object]) -> None:
    """Compares and times a client. What it told last holds, so that a crash is told as well."""
    tell({"status": "unusable", "detail": "ended before torch.nn's side had run"})
    torch.set_num_threads(1)
    try:
        version = metadata.version(client.package)
        theirs = built(client, ours=False)
        expected, state = theirs.step(), theirs.model.state_dict()
        nudged = []
        for seed in range(NUDGES):
            side = built(client, ours=False)
            side.model.load_state_dict(state)
            nudge_(side.model, seed)
            nudged.append(side.step())
    except Exception as error:  # whatever a package raises
        traceback.print_exc()
        tell({"status": "unusable", "detail": f"torch.nn's side: {in_a_line(error)}"})
        return
    facts: dict[str, object] = {"version": version, "status": "error", "detail": "ended on fastrnn's side"}
    tell(facts)
    try:
        ours = built(client, ours=True)
        ours.model.load_state_dict(state)
        found = ours.step()
        layers, backends = served(ours)
    except Exception as error:
        traceback.print_exc()
        tell(facts | {"detail": in_a_line(error)})
        return
    facts |= {"layers": ", ".join(sorted({type(m).__name__ for m in layers})), "backends": ", ".join(backends)}
    verdict = judge(found, expected, nudged)
    facts |= {"detail": verdict.tensor, "difference": f"{verdict.difference:.1e}", "allowed": f"{verdict.allowed:.1e}"}
    if not layers:
        facts |= {"detail": "no module of fastrnn's in the model"}
    elif verdict.share > 1:
        facts |= {"status": "WRONG"}
    else:
        samples = interleave([lambda _: theirs.step(), lambda _: ours.step()], [None], pace, ClockRounds())
        times = dict(zip(SIDES, map(spread, samples)))
        facts |= {f"{side}_ms_{t}": f"{getattr(times[side], t):.4g}" for side in SIDES for t in TIMES}
        ratio = times["torch"].median / times["ours"].median
        facts |= {"status": "ok", "repeats": times["ours"].repeats, "ratio": f"{ratio:.3f}"}
    tell(facts)


def in_a_line(error: Exception) -> str:
    """The type of an error and the beginning of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def install(client: Client, folder: Path) -> Path:
    """The Python of a new environment with the client's packages, which borrows this one's; raises Unusable."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    next(folder.glob("lib/python*/site-packages")).joinpath("borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pinned = folder / "constraints.txt"
    pinned.write_text(f"torch=={torch.__version__}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
    for options, packages in ((["--no-deps"], client.bare), (["--constraint", str(pinned)], client.needs)):
        command = [*pip, *options, *packages]
        if not packages:
            continue
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            print(done.stdout)
            errors = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["no reason given"]
            raise Unusable(f"pip: {errors[-1].strip()[:200]}")
    for path in client.without:
        for file in folder.glob(f"lib/python*/site-packages/{path}"):
            file.unlink()
    return python


def run(name: str, client: Client, args: argparse.Namespace, folder: Path) -> Row:
    """The row of a client, which runs in a process of its own."""
    row = dict.fromkeys(COLUMNS, "") | environment_now()
    row |= {"client": name, "licence": client.licence, "model": client.model, "by": client.by}
    told, root = folder / f"{name}.json", Path(fastrnn.__file__).resolve().parent.parent
    command = [__file__, "--seconds", args.seconds, "--row", told, name]
    command += ["--table", args.table.resolve()] if args.table else []
    try:
        python = install(client, folder / name) if args.install else Path(sys.executable)
        settings = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            list(map(str, (python, *command))),
            env=settings,
            cwd=folder,
            timeout=LIMIT_S,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        facts = json.loads(told.read_text()) if told.exists() else {"status": "error", "detail": "said nothing"}
        if facts["status"] != "ok":
            print(done.stdout)
    except Unusable as reason:
        facts = {"status": "unusable", "detail": str(reason)}
    except subprocess.TimeoutExpired:
        facts = json.loads(told.read_text())
    return row | {key: str(value) for key, value in facts.items()}


def environment_now() -> Row:
    """The columns that are known before a client runs."""
    place = environment(torch.device("cpu"))
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {name: place[name] for name in PLACE} | {"date": date, "load": f"{os.getloadavg()[0]:.1f}"}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of results, none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_row(path: Path, row: Row) -> None:
    """Puts a row in the place of the client's former one, or at the end."""
    rows = {old["client"]: old for old in read_rows(path)} | {row["client"]: row}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def line_of(row: Row) -> str:
    """A row on a line: what was compared, or why nothing was."""
    head = f"{row['client']:<18} {row['version']:<10} {row['status']:<9}"
    if not row["difference"]:
        return f"{head} {row['detail']}"
    text = f"{head} difference {row['difference']} of {row['allowed']} allowed ({row['detail']})"
    if row["ratio"]:
        text += f"  {row['torch_ms_median']} -> {row['ours_ms_median']} ms, {row['ratio']}x ({row['backends']})"
    return text


def in_ms(time: str) -> str:
    """A time in three figures or whole milliseconds."""
    return f"{float(time):.3g} ms" if float(time) < 100 else f"{float(time):.0f} ms"


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/clients.md, and under it what it was measured on."""
    heads = ("name", "version, licence", "model", "by", "difference", "allowed", "backend", "torch.nn", "fastrnn")
    lines = [f"| {' | '.join(heads)} | ratio |", "| --- | --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: |"]
    for row in rows:
        cells = [f"`{row['client']}`", f"{row['version']}, {row['licence']}", row["model"], f"`{row['by']}`"]
        if row["status"] == "ok":
            cells += [row["difference"], row["allowed"], row["backends"]]
            cells += [in_ms(row[f"{side}_ms_median"]) for side in SIDES]
            cells += [f"{float(row['ratio']):.2f}x"]
        else:
            cells += [f"{row['status']}: {row['detail']}", *[""] * 5]
        lines.append(f"| {' | '.join(cells)} |")
    names = ("device", "torch", "fastrnn", "commit")
    places = dict.fromkeys("{}, torch {}, fastrnn {} ({})".format(*(row[name] for name in names)) for row in rows)
    loads, date = [float(row["load"]) for row in rows], max(row["date"] for row in rows)[:10]
    measured = f"Measured on {'; '.join(places)}, {date}, at load averages of {min(loads)} to {max(loads)}."
    return "\n".join([*lines, "", measured])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help="default: all of the table")
    parser.add_argument("--install", action="store_true", help="give each client an environment of its own, by pip")
    parser.add_argument("--seconds", type=float, default=6.0, help="measuring time of a client (default: %(default)s)")
    parser.add_argument("--table", type=Path, help="a Python file with CLIENTS (default: client_models.py)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV, a row per client (default: %(default)s)")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)  # measure in this process, write the row there
    args = parser.parse_args(argv)
    table = runpy.run_path(str(args.table))["CLIENTS"] if args.table else CLIENTS
    names = args.clients or list(table)
    if unknown := [name for name in names if name not in table]:
        parser.error(f"clients: expected some of {', '.join(table)}, got {', '.join(unknown)}")
    if args.row:
        pace = Pace(args.seconds, least=5 if args.seconds >= 1 else 2)
        measure(table[names[0]], pace, lambda facts: args.row.write_text(json.dumps(facts)))
        return 0
    warn_if_busy()
    states = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fastrnn-client-") as folder:
            row = run(name, table[name], args, Path(folder))
        write_row(args.out, row)
        print(line_of(row), flush=True)
        states.append(row["status"])
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(states)} clients: {counts}")
    return int("ok" not in states or any(state in FAILED for state in states))


if __name__ == "__main__":
    sys.exit(main())
