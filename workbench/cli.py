"""The command line: `workbench run | tune | runs | app | models | tasks | check`, its flags from the registries.

Exit codes: 0 done, 1 something a person can mend (one sentence on stderr), 2 a wrong command line, 3 a red trust card,
130 interrupted, 143 asked to end.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from workbench.analyses import ANALYSES
from workbench.launch import owner_is_gone
from workbench.models.reference import checkpoints, zoo_names
from workbench.parameters import Parameter
from workbench.progress import reporting
from workbench.registry import WorkbenchError
from workbench.results import run
from workbench.runs import Run, accuracy, run_names
from workbench.spec import Spec, SpecError, read_spec
from workbench.store import StoreError, save
from workbench.tasks import TASKS, Task, make_task
from workbench.tuning import estimate, tune

FAILED, RED, INTERRUPTED = 1, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The whole command line, one subcommand for each registered analysis under `run`."""
    top = argparse.ArgumentParser(prog="workbench", description="See what a transformer shares between its tasks.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    analyses = commands.add_parser("run", help="run an analysis and save its dataset").add_subparsers(
        required=True, metavar="ANALYSIS"
    )
    for name, analysis in ANALYSES.items():
        _add_analysis(analyses.add_parser(name, help=analysis.about, description=analysis.about), name)
    _add_tune(commands.add_parser("tune", help="fine-tune a model on several tasks, or go on where it stopped"))
    models = commands.add_parser("models", help="list the shipped models")
    tasks = commands.add_parser("tasks", help="list the tasks and their corruptions")
    runs = commands.add_parser("runs", help="list the fine-tunes on this machine")
    for command, function in ((models, _models), (tasks, _tasks), (runs, _runs)):
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(command=function)
    papers = commands.add_parser("papers", help="print which paper each task and analysis implements, as Markdown")
    papers.set_defaults(command=_papers)
    check = commands.add_parser("check", help="load a model and print its trust card")
    check.add_argument("model", help="zoo/<name>, a directory, or a hub id")
    check.add_argument("--json", action="store_true", help="print JSON")
    _add_loading(check)
    check.set_defaults(command=_check)
    app = commands.add_parser("app", help="serve the dashboard on this machine")
    app.add_argument("--port", type=int, default=0, help="port (default: a free one)")
    app.add_argument("--models", type=Path, help="a folder whose model directories are offered too")
    app.set_defaults(command=_app)
    return top


def _add_analysis(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument("--model", required=True, help="zoo/<name>, a directory, or a hub id")
    command.add_argument("--task", required=True, help=f"one of {', '.join(TASKS)}, or a .jsonl or .csv of your pairs")
    command.add_argument("--corruption", help="the task's corruption (default: its first)")
    command.add_argument("--n", type=int, default=64, help="prompts (default 64)")
    command.add_argument("--seed", type=int, default=0, help="seed of the prompts (default 0)")
    command.add_argument("--out", type=Path, help="netCDF file to write (default: only the store)")
    command.add_argument("--json", action="store_true", help="print a JSON summary")
    command.add_argument("--refresh", action="store_true", help="compute again even if the store has the result")
    _add_loading(command)
    for parameter in ANALYSES[name].parameters.values():
        _add_parameter(command, parameter)
    command.set_defaults(command=_run, analysis=name)


def _add_tune(command: argparse.ArgumentParser) -> None:
    command.add_argument("spec", type=Path, help="a .yaml or .json file with the tune's settings")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting to have instead, its value as in YAML; options.r=4 sets a part of one (may be repeated)",
    )
    command.add_argument("--estimate", action="store_true", help="only say what it would take")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_tune)


def _add_loading(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cuda, mps or cpu (default: the first there is)")
    command.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    command.add_argument("--fold", action="store_true", help="fold layer norms and value biases into the weights")
    command.add_argument("--merge", action="store_true", help="merge an adapter into a copy of the weights")
    command.add_argument("--override", action="store_true", help="trace even if the trust card is red")
    command.add_argument("--trust-remote-code", action="store_true", help="let the model's own code run")


def _add_parameter(command: argparse.ArgumentParser, parameter: Parameter) -> None:
    kind, flag = parameter.kind if parameter.kind in (int, float) else str, f"--{parameter.name.replace('_', '-')}"
    if parameter.kind is bool:
        switch, said = argparse.BooleanOptionalAction, f"default {parameter.default}"
        command.add_argument(flag, action=switch, default=parameter.default, help=said)
        return
    command.add_argument(
        flag,
        type=kind,
        choices=parameter.choices or None,
        default=parameter.default,
        help=f"default {parameter.default}",
    )


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "dtype", "fold", "merge", "override", "trust_remote_code")
    return {"reference": options.model, **{name: getattr(options, name) for name in names}}


def _run(options: argparse.Namespace) -> int:
    params = {name: getattr(options, name) for name in ANALYSES[options.analysis].parameters}
    task = _task(options)
    ds = run(options.analysis, _loading(options), task, refresh=options.refresh, **params)
    if options.out:
        _save(ds, options.out)
    primary = ds[ds.attrs["primary"]]
    summary = {
        "title": ds.attrs["title"],
        "primary": primary.name,
        "dims": {str(dim): size for dim, size in primary.sizes.items()},
        "largest": float(abs(primary).max()),
        "seconds": float(ds.attrs["seconds"]),
        "file": str(options.out) if options.out else None,
    }
    _print(summary if options.json else str(ds), options.json)
    return 0


def _save(ds: xr.Dataset, path: Path) -> None:
    try:
        save(ds, path)
    except StoreError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise StoreError(f"The result could not be written to '{path}' ({reason}); name another --out.") from error


def _task(options: argparse.Namespace) -> Task:
    if Path(options.task).suffix in (".jsonl", ".ndjson", ".csv"):
        return Task.from_records(options.task, name=Path(options.task).stem)
    return make_task(options.task, n=options.n, seed=options.seed, corruption=options.corruption)


def _tune(options: argparse.Namespace) -> int:
    spec = read_spec(options.spec, _settings(options.set))
    if options.estimate:
        return _estimate(spec, options.json)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that accelerate launched, the one that speaks
    with _asked_to_end() as asked, _bar(spec, shown=first) as bar, reporting(asked.unless(bar)):
        run = tune(spec)
    if first:
        status = run.status
        found = {"run": run.reference, "folder": str(run.folder), **status, "accuracy": accuracy(run.records)}
        _print(found if options.json else _where(found, spec), options.json)
    if asked.signal and run.status["state"] != "finished":
        if first:
            again = shlex.join(["workbench", "tune", str(options.spec), *(f"--set={text}" for text in options.set)])
            print(f"workbench: Stopped; a checkpoint is kept. To go on: {again}", file=sys.stderr)
        return 128 + asked.signal
    return 0


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SpecError(f"--set is {text!r}; write name=value, such as steps=400.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SpecError(f"The value in --set {text!r} is not YAML; quote it, or write it as in the file.") from None
    return found


def _estimate(spec: Spec, as_json: bool) -> int:
    found = estimate(spec)
    text = (
        f"{found.memory / 2**30:.2f} GiB of the {found.free / 2**30:.1f} GiB that are free; about "
        f"{found.seconds:.0f} s for {spec.steps} steps; {found.trained:,} of {found.parameters:,} parameters trained"
    )
    numbers = {name: getattr(found, name) for name in ("memory", "free", "seconds", "parameters", "trained")}
    _print(numbers if as_json else text, as_json)
    return 0


def _where(found: dict[str, Any], spec: Spec) -> str:
    task = next((entry["name"] for entry in spec.tasks if "rows" not in entry), "TASK")
    return (
        f"{found['run']}: {found['state']}, {found['done']} of {found['of']} steps{_share(found['accuracy'])}\n"
        f"kept in {found['folder']}\nto trace it: workbench run head_patching --model {found['run']} --task {task}"
    )


def _share(right: float | None) -> str:
    return "" if right is None else f", {right:.0%} of the held-out rows right"


class _Asked:
    """The signal that asked to end, if one did."""

    def __init__(self) -> None:
        self.signal, self._looking = 0, False

    def hear(self, number: int, _: Any) -> None:
        """Remember the first signal; before there is a step to finish, and at a second Ctrl-C, end at once."""
        if number == signal.SIGINT and (self.signal or not self._looking):
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def unless(self, bar: Any) -> Any:
        """A report that moves the bar and goes on unless asked to end; of several processes, unless one of them was."""

        def report(what: str, done: int, of: int) -> bool:
            self._looking = True
            bar.update(bar.total - of + done - bar.n)  # a run that goes on has done some before
            self.signal = self.signal or (signal.SIGTERM if owner_is_gone() else 0)
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                from accelerate.utils import gather_object

                self.signal = max(gather_object([self.signal]))
            return not self.signal

        return report


@contextlib.contextmanager
def _asked_to_end() -> Iterator[_Asked]:
    """Within it, Ctrl-C and SIGTERM (of a scheduler that is about to kill) wait for the present step."""
    asked, before = _Asked(), {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, asked.hear)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _bar(spec: Spec, *, shown: bool) -> Iterator[Any]:
    """A progress bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=spec.steps, desc=f"tuning {spec.name}", disable=None if shown else True) as bar:
        yield bar


def _runs(options: argparse.Namespace) -> int:
    rows = [_row(name) for name in run_names()]
    lines = [
        f"run/{row['name']}  {row['state']}, {row['done']} of {row['of']} steps{_share(row['accuracy'])}"
        f"  [{', '.join(row['tasks'])} from {row['model']}]"
        for row in rows
    ]
    _print(rows if options.json else "\n".join(lines) or "There are no runs yet.", options.json)
    return 0


def _row(name: str) -> dict[str, Any]:
    run = Run(name)
    try:
        spec, status = run.spec, {"of": 0, "error": "", **run.status}
    except WorkbenchError as error:
        status = {"state": "damaged", "done": 0, "of": 0, "error": str(error)}
        return {"name": name, **status, "accuracy": None, "tasks": [], "model": "?"}
    return {"name": name, **status, "accuracy": accuracy(run.records), "tasks": spec.titles, "model": spec.model}


def _models(options: argparse.Namespace) -> int:
    rows = {name: checkpoints(name) for name in zoo_names()}
    lines = [f"{name}  (checkpoints at {', '.join(map(str, steps)) or 'none'})" for name, steps in rows.items()]
    _print(rows if options.json else "\n".join(lines), options.json)
    return 0


def _tasks(options: argparse.Namespace) -> int:
    rows = {name: {"corruptions": f.corruptions, "metric": f.metric, "about": f.about} for name, f in TASKS.items()}
    lines = [f"{name}  [{', '.join(row['corruptions'])}]  {row['about']}" for name, row in rows.items()]
    _print(rows if options.json else "\n".join(lines), options.json)
    return 0


def _papers(options: argparse.Namespace) -> int:
    rows = [(name, "task", family.paper) for name, family in TASKS.items()]
    rows += [(name, "analysis", analysis.paper) for name, analysis in ANALYSES.items()]
    lines = [f"| {name} | {kind} | {paper} |" for name, kind, paper in rows if paper]
    sys.stdout.write("\n".join(["| name | kind | what it implements |", "|---|---|---|", *lines]) + "\n")
    return 0


def _check(options: argparse.Namespace) -> int:
    from workbench.models.load import load

    model = load(**_loading(options))
    _print(json.loads(model.card.to_json()) if options.json else f"{model!r}\n{model.card!r}", options.json)
    return RED if model.card.problems() else 0


def _app(options: argparse.Namespace) -> int:
    from workbench.app.serve import serve
    from workbench.app.sidebar import offered_models

    if options.models:
        offered_models(str(options.models))  # refuses what is no folder
        os.environ["WORKBENCH_MODELS"] = str(options.models)
    serve(options.port)
    return 0


def _print(value: Any, as_json: bool) -> None:
    print(json.dumps(value, indent=1) if as_json else value)


if __name__ == "__main__":
    sys.exit(main())
