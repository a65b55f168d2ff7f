"""A class of submissions graded: each in a kernel of its own, in a sandbox, under pytest with nbval.

Of a submission only the solution cells count. They are put into the assignment as it was given out, so what a student
did to other cells changes nothing. A check's text reaches the kernel when that cell runs and not before; its file is
gone by then. A cell that kills the kernel, or takes too long, loses its own exercise: the notebook is run again
without it. Verdicts are read from nbval, outside the sandbox; what a cell prints decides nothing.

What this cannot stop: the check runs in one process with the student's code. Code written against `graded_kernel`
itself, which patches it through the garbage collector, say, or answers its messages by hand, can still forge a pass,
and can hand a hidden test's text on in the message of an exception. It cannot touch another student's grade, for that
is another process, in another sandbox; where the system denies one, `Report.denied` says so. Whoever gives grades that
matter reads the cells of the best, which feedback pages show.
"""

import ast
import contextlib
import copy
import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import symtable
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from course_utils.assignments import Exercise, exercises, read_assignment, student_version
from course_utils.errors import CourseError
from course_utils.sandbox import Sandbox, denied, own_environment, python_folders
from course_utils.submissions import Submission, notebook_cells

if TYPE_CHECKING:
    from nbformat import NotebookNode

PASSED, FAILED, MISSING = "passed", "failed", "missing"
TIME, MEMORY, DIED, NOT_RUN = "time limit", "memory limit", "kernel died", "not run"

MOST_FAILURES = 3
"""So many submissions that the machine fails to grade end the whole."""

FIRST_LINE = re.compile(r"\s*#\s*exercise:\s*([\w-]+)\s*")


@dataclass(frozen=True)
class Limits:
    """What a submission may use.

    Attributes:
        cell_seconds: of a cell.
        seconds: of the whole notebook, however often it has to be run.
        memory: bytes of all its processes together.
    """

    cell_seconds: float = 60
    seconds: float = 600
    memory: int = 4_000_000_000


@dataclass(frozen=True)
class Assignment:
    """An assignment as it was given out: the notebook, with or without hidden tests, and its exercises."""

    name: str
    notebook: "NotebookNode"

    @property
    def exercises(self) -> list[Exercise]:
        return exercises(self.notebook)


@dataclass(frozen=True)
class ExerciseResult:
    """What came of one exercise.

    Attributes:
        outcome: ``passed``, ``failed``, ``missing``, ``time limit``, ``memory limit``, ``kernel died`` or ``not run``.
        message: why it gives no points: what the check says, or how the student's cell ended.
        source: the student's cell.
        text, traceback, pictures: what the student's cell wrote, how it failed, and its figures (PNG, base64).
    """

    grade_id: str
    title: str
    out_of: int
    points: int = 0
    outcome: str = NOT_RUN
    message: str = ""
    source: str = ""
    text: str = ""
    traceback: str = ""
    pictures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A submission's grade.

    Attributes:
        student, where: of the submission.
        assignment: its name, or "" where no assignment fits.
        status: ``graded``, and what is to be known about it; or why there is nothing to grade.
        exercises: in the order of the page; empty where no assignment fits.
    """

    student: str
    where: str
    assignment: str
    status: str
    exercises: list[ExerciseResult]

    @property
    def total(self) -> int:
        return sum(exercise.points for exercise in self.exercises)

    @property
    def out_of(self) -> int:
        return sum(exercise.out_of for exercise in self.exercises)


@dataclass(frozen=True)
class Report:
    """The grades of a class, sorted by student and assignment; ``denied`` says what the system denied the sandbox."""

    results: list[Result]
    denied: str | None


def visible_assignment(notebook: Path, sources: Path) -> Assignment:
    """A student's assignment as they see it: its source without hidden tests or, where there is none, the file.

    Raises:
        CourseError: the file is no notebook, or holds no exercise with its check.
    """
    import nbformat

    source = sources / f"{notebook.stem}.py"
    if source.is_file():
        return Assignment(notebook.stem, student_version(read_assignment(source)))
    try:
        own = nbformat.reads(notebook.read_text(encoding="utf-8"), as_version=4)
        own.cells = [cell for cell in own.cells if "nbgrader" in cell.metadata or cell.cell_type == "markdown"]
        for cell in own.cells:
            cell.metadata.setdefault("nbgrader", {"grade_id": "", "grade": False, "solution": False})
        assignment = Assignment(notebook.stem, own)
        if not assignment.exercises:
            raise ValueError("no exercises")
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise CourseError(
            f"{notebook} is no notebook of an assignment ({error}): name the one that you work on"
        ) from None
    return assignment


class NotGraded(Exception):
    """The machine, not the student, is the cause; nothing of it is remembered."""


def grade(
    submissions: Sequence[Submission],
    assignments: Sequence[Assignment],
    *,
    limits: Limits = Limits(),
    workers: int = 1,
    shown: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> Report:
    """Grade submissions, each (student, assignment) once.

    A student who handed in an assignment several times gets the best of them, whatever their order.

    Args:
        submissions: see `course_utils.submissions.find_submissions`.
        assignments: what they may be submissions of.
        workers: how many are graded at a time, each on a processor of its own.
        shown: files and folders that the kernels may read.
        environment: variables that the kernels see, besides those that every sandbox has.
        cache: a folder in which results are kept; what has not changed since is not run again.
        progress: show a bar.

    Raises:
        CourseError: this system lets no sandbox of any kind be made, or a submission was not graded for a reason that
            is not its own; what was graded until then is in ``cache``.
    """
    from tqdm import tqdm

    why = _isolation()
    environment = dict(environment or {})
    settings = {
        "engine": _engine_hash(),
        "limits": asdict(limits),
        "environment": environment,
        "isolated": why is None,
    }
    by_name = {assignment.name: assignment for assignment in assignments}
    free: SimpleQueue[int | None] = SimpleQueue()
    for processor in _one_each(workers):
        free.put(processor)
    stop = threading.Event()

    def work(submission: Submission) -> Result:
        name, solutions, problem = understand(submission, assignments)
        if problem is not None:
            return _nothing(submission, by_name.get(name), problem)
        assignment = by_name[name]
        key = _hash([settings, _content(assignment.notebook), solutions])
        if cache is not None and (known := _remembered(cache / f"{key}.json")) is not None:
            return Result(submission.student, submission.where, name, *known)
        processor = free.get()
        try:
            run = _Run(assignment, limits, tuple(map(str, shown)), environment, processor, why is None, stop)
            status, graded = run.grade(solutions)
        finally:
            free.put(processor)
        if cache is not None:
            _remember(cache / f"{key}.json", status, graded)
        return Result(submission.student, submission.where, name, status, graded)

    results, failures = [], []
    executor = ThreadPoolExecutor(workers)
    try:
        waiting = [executor.submit(work, submission) for submission in submissions]
        for done in tqdm(as_completed(waiting), total=len(waiting), unit="submission", disable=not progress):
            try:
                results.append(done.result())
            except NotGraded as error:
                failures.append(error)
                if len(failures) == MOST_FAILURES:
                    break
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)
    if failures:
        raise CourseError(
            f"{len(failures)} of {len(submissions)} submissions were not graded ({failures[0]}): mend that and grade "
            "again, the others are kept"
        ) from failures[0]
    return Report(_best(results), why)


def _best(results: list[Result]) -> list[Result]:
    """One result a student and assignment: the best, of equals the first path."""
    versions: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda result: (result.student, result.assignment, result.where)):
        versions.setdefault((result.student, result.assignment), []).append(result)
    best = []
    for handed_in in versions.values():
        chosen = max(handed_in, key=lambda result: result.total)
        if len(handed_in) > 1:
            chosen = replace(chosen, status=f"{chosen.status}; handed in {len(handed_in)} times, best: {chosen.where}")
        best.append(chosen)
    return best


def understand(
    submission: Submission, assignments: Sequence[Assignment]
) -> tuple[str, dict[str, tuple[str, bool]], str | None]:
    """Which assignment a submission is of, and its solutions.

    Returns:
        the assignment's name or ""; by grade_id, the student's cell and whether there were several, of which the last
        counts that is not the untouched stub; what is wrong, or None.
    """
    stem = Path(submission.where).stem
    name = max((assignment.name for assignment in assignments if assignment.name in stem), key=len, default="")
    if submission.content is None:
        return name, {}, submission.problem
    try:
        cells = notebook_cells(submission.content)
    except ValueError as error:
        return name, {}, str(error)
    chosen = [assignment for assignment in assignments if name in ("", assignment.name)]
    found = {assignment.name: _solutions(cells, assignment) for assignment in chosen}
    best = max(found, key=lambda name: len(found[name]), default="")
    if not best or not found[best]:
        return name, {}, f"wrong notebook (no exercise of {name})" if name else "wrong notebook (of no assignment)"
    return best, found[best], None


def _solutions(cells: Sequence[dict], assignment: Assignment) -> dict[str, tuple[str, bool]]:
    stubs = {
        cell.metadata.nbgrader.grade_id: cell.source.strip()
        for cell in student_version(assignment.notebook).cells
        if cell.metadata.nbgrader.solution
    }
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell["cell_type"] == "code" and (name := _grade_id(cell)) in stubs:
            found.setdefault(name, []).append(cell["source"])
    solutions = {}
    for name, sources in found.items():
        tried = [source for source in sources if source.strip() != stubs[name]]
        solutions[name] = (tried or sources)[-1], len(set(tried)) > 1
    return solutions


def _grade_id(cell: Mapping[str, Any]) -> str | None:
    meta = cell["metadata"].get("nbgrader")
    if isinstance(meta, dict) and isinstance(meta.get("grade_id"), str):
        return meta["grade_id"]
    first = FIRST_LINE.fullmatch(cell["source"].lstrip().partition("\n")[0])
    return first[1] if first else None


def _nothing(submission: Submission, assignment: Assignment | None, problem: str) -> Result:
    none = [] if assignment is None else [_unsolved(exercise, outcome=MISSING) for exercise in assignment.exercises]
    name = "" if assignment is None else assignment.name
    return Result(submission.student, submission.where, name, problem, none)


def _unsolved(exercise: Exercise, **fields: Any) -> ExerciseResult:
    return ExerciseResult(exercise.grade_id, exercise.title, exercise.points, **fields)


@dataclass(frozen=True)
class _Run:
    """One submission under way."""

    assignment: Assignment
    limits: Limits
    shown: tuple[str, ...]
    environment: dict[str, str]
    processor: int | None
    isolated: bool
    stop: threading.Event

    def grade(self, solutions: Mapping[str, tuple[str, bool]]) -> tuple[str, list[ExerciseResult]]:
        """Run the notebook until every exercise has a verdict; returns the status and the exercises.

        Raises:
            NotGraded: the kernel did not start, or a cell of the assignment itself failed.
        """
        end = time.monotonic() + self.limits.seconds
        results = {
            exercise.grade_id: _unsolved(exercise, outcome=MISSING, message="the exercise's cell is not there")
            if exercise.grade_id not in solutions
            else _unsolved(exercise, source=solutions[exercise.grade_id][0])
            for exercise in self.assignment.exercises
        }
        sources = {name: source for name, (source, _) in solutions.items()}
        while any(result.outcome == NOT_RUN for result in results.values()):
            waiting = {name for name, result in results.items() if result.outcome == NOT_RUN}
            notebook, roles = assemble(self.assignment, sources, waiting, self.limits.cell_seconds)
            records = self._run(notebook, roles, sources, end)
            ended = _read_records(records, roles, results)
            if ended is None:
                break
            fatal, reason = ended
            if results[fatal].outcome == NOT_RUN:
                results[fatal] = replace(results[fatal], outcome=reason, message=self._why(reason))
            sources.pop(fatal, None)
            if time.monotonic() > end:
                break
        graded = [
            replace(result, message=f"the notebook's time limit of {self.limits.seconds:g} s had passed")
            if result.outcome == NOT_RUN
            else result
            for result in results.values()
        ]
        notes = [f"{result.grade_id}: {result.outcome}" for result in graded if result.outcome not in (PASSED, FAILED)]
        notes += [f"{name}: there twice, the last counts" for name, (_, twice) in solutions.items() if twice]
        return "; ".join(["graded", *notes]), graded

    def _why(self, reason: str) -> str:
        return {
            TIME: f"stopped: the cell or its check took more than {self.limits.cell_seconds:g} s",
            MEMORY: f"stopped: it took more than {self.limits.memory / 1e9:g} GB of memory",
        }.get(reason, "it ended the kernel")

    def _run(
        self, notebook: "NotebookNode", roles: list["_Role"], sources: Mapping[str, str], end: float
    ) -> list[dict]:
        """Run a notebook once; what nbval told of each cell that was begun, in order."""
        import nbformat

        # The kernel's folder, for its sockets, is the only one that it shares; the notebook's is not seen from inside.
        with _folder() as outer, _folder() as scratch:
            path = outer / "notebook.ipynb"
            nbformat.write(notebook, path)
            plan = scratch / "plan.json"
            plan.write_text(json.dumps(_plan(self.assignment, notebook, roles, sources)))
            connection = scratch / "kernel.json"
            sandbox = Sandbox(
                scratch=str(scratch),
                shown=(*python_folders(), *self.shown),
                environment=_kernel_environment() | self.environment,
                memory=self.limits.memory,
                seconds=int(self.limits.seconds) + 1,
                cpu=self.processor,
                isolated=self.isolated,
            )
            kernel = [sys.executable, "-m", "course_utils.graded_kernel", str(plan), "-f", str(connection)]
            read, write = os.pipe()
            environment = own_environment() | {
                "GRADED_RUN_KERNEL": json.dumps(sandbox.command(kernel)),
                "GRADED_RUN_CONNECTION": str(connection),
                "GRADED_RUN_PIPE": str(write),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "JUPYTER_RUNTIME_DIR": str(outer),
                "IPYTHONDIR": str(outer),
            }
            (outer / "pytest.ini").write_text("[pytest]\n")
            command = [sys.executable, "-m", "pytest", "-q", "-p", "course_utils.graded_run", "-p", "nbval.plugin"]
            command += ["-p", "no:cacheprovider", "--noconftest", "-c", str(outer / "pytest.ini"), "--nbval-lax"]
            command += [str(path)]
            with open(outer / "log", "wb") as log, open(read, "rb", buffering=0) as pipe:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=outer,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[write],
                    start_new_session=True,  # Ctrl-C is for this process, which then ends that one
                )
                os.close(write)
                try:
                    records, timed_out = self._listen(pipe, end)
                finally:
                    _end(process)
            if not records:
                told = (outer / "log").read_text(errors="replace").strip().splitlines()
                raise NotGraded(f"pytest did not run ({told[-1] if told else 'it told nothing'})")
            if len(records) < len(roles) and records[-1]["state"] not in ("ended", "not started"):
                # pytest itself is gone, or was ended: by what it was running then
                error = TIME if timed_out else DIED
                records.append({"cell": len(records), "state": "ended", "outputs": [{"error": error}]})
            return records

    def _listen(self, pipe: Any, end: float) -> tuple[list[dict], bool]:
        """What pytest writes until it closes the pipe or the notebook's time is over; whether it was over."""
        heard = bytearray()
        timed_out = False
        while True:
            if self.stop.is_set():
                raise NotGraded("stopped")
            if timed_out := time.monotonic() > end:
                break
            if select.select([pipe], [], [], 0.2)[0]:
                part = pipe.read(1 << 16)
                if not part:
                    break
                heard += part
        whole = bytes(heard).rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()], timed_out


@dataclass(frozen=True)
class _Role:
    """What a code cell of an assembled notebook is: ``locked``, or ``solution`` or ``check`` of an exercise."""

    kind: str
    grade_id: str | None = None


def assemble(
    assignment: Assignment, sources: Mapping[str, str], waiting: set[str], seconds: float
) -> tuple["NotebookNode", list[_Role]]:
    """The assignment with a student's cells in it, and what each of its code cells is.

    Args:
        sources: the student's cells, by grade_id; exercises without one are left out.
        waiting: grade_ids of the exercises whose checks are run.
        seconds: that a student's cell and its check may take, each.
    """
    import nbformat

    notebook = copy.deepcopy(assignment.notebook)
    of_check = {exercise.check_id: exercise.grade_id for exercise in assignment.exercises}
    cells, roles = [], []
    for cell in notebook.cells:
        name = cell.metadata.nbgrader.grade_id
        if cell.cell_type != "code":
            continue
        if cell.metadata.nbgrader.solution:
            if name not in sources:
                continue
            role = _Role("solution", name)
            source = sources[name]
        elif name in of_check:
            if of_check[name] not in waiting:
                continue
            role, source = _Role("check", of_check[name]), cell.source
        else:
            role, source = _Role("locked"), cell.source
        # The assignment's own cells may take as long as they need, on a slow or busy machine too.
        limit = {} if role.kind == "locked" else {"seconds": seconds}
        cells.append(nbformat.v4.new_code_cell(source, metadata=limit))
        roles.append(role)
    return nbformat.v4.new_notebook(cells=cells), roles


def _read_records(
    records: Sequence[dict], roles: Sequence[_Role], results: dict[str, ExerciseResult]
) -> tuple[str, str] | None:
    """Enter verdicts into ``results``; returns the exercise that ended the kernel, and how, or None.

    Raises:
        NotGraded: the kernel did not start, or a cell of the assignment failed before any of the student's ran.
    """
    last: str | None = None
    for record in records:
        role = roles[record["cell"]]
        errors = [output["error"] for output in record["outputs"] if "error" in output]
        if role.kind == "solution":
            last = role.grade_id
        if record["state"] == "not started":
            raise NotGraded(f"no kernel could be started ({errors[-1] if errors else 'it does not say why'})")
        if last is None and record["state"] != "passed":
            raise NotGraded(f"a cell of the assignment itself failed ({errors[-1] if errors else record['state']})")
        if record["state"] == "ended":
            return last, errors[-1] if errors[-1] in (TIME, MEMORY) else DIED
        if role.kind == "solution":
            results[last] = _with_outputs(results[last], record["outputs"])
        elif role.kind == "check":
            results[role.grade_id] = _judged(results[role.grade_id], record["state"] == "passed", errors)
    return None


def _with_outputs(result: ExerciseResult, outputs: Sequence[dict]) -> ExerciseResult:
    return replace(
        result,
        text="".join(output["text"] for output in outputs if "text" in output),
        pictures=[output["picture"] for output in outputs if "picture" in output],
        traceback="".join(plain(output.get("traceback", "")) for output in outputs),
        message=next((plain(output["error"]) for output in outputs if "error" in output), ""),
    )


def _judged(result: ExerciseResult, passed: bool, errors: Sequence[str]) -> ExerciseResult:
    if passed:
        return replace(result, outcome=PASSED, points=result.out_of, message="")
    told = plain(errors[-1]) if errors else "the check failed"
    return replace(result, outcome=FAILED, message=f"your cell ended in {result.message}" if result.message else told)


def plain(text: str) -> str:
    """Text without a terminal's colours and other control characters."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return "".join(character for character in text if character in "\n\t" or character >= " ")


def _plan(
    assignment: Assignment, notebook: "NotebookNode", roles: Sequence[_Role], sources: Mapping[str, str]
) -> dict[str, Any]:
    from course_utils.graded_kernel import cell_hash

    asked = {
        cell.metadata.nbgrader.grade_id: _bound(cell.source)
        for cell in assignment.notebook.cells
        if cell.metadata.nbgrader.solution
    }
    code = [cell.source for cell in assignment.notebook.cells if cell.cell_type == "code"]
    answers: dict[str, list[str]] = {}
    for name, source in sources.items():
        answers.setdefault(cell_hash(source), []).extend(asked[name])
    return {"answers": answers, "imports": sorted({name for source in code for name in _imported(source)})}


def _bound(source: str) -> list[str]:
    """The names that a cell binds."""
    try:
        table = symtable.symtable(source, "cell", "exec")
    except SyntaxError:
        return []
    return [symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()]


def _imported(source: str) -> Iterator[str]:
    """The modules that a cell imports, and further names that may be modules."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # it may be a module


def _kernel_environment() -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def _end(process: subprocess.Popen) -> None:
    """End pytest and whatever it started."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for a run, with a short name: paths of sockets may have 100 characters."""
    path = Path(tempfile.mkdtemp(prefix="grade-")).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _isolation() -> str | None:
    """Why there are no namespaces here, or None.

    Raises:
        CourseError: not even an ordinary user's rights can be had.
    """
    with _folder() as scratch:
        why = denied(scratch)
    if why is not None:
        with _folder() as scratch:
            plain_sandbox = Sandbox(str(scratch), (), {}, memory=1 << 30, isolated=False)
            command = plain_sandbox.command([sys.executable, "-c", "import course_utils"])
            trial = subprocess.run(command, capture_output=True, text=True, env=own_environment())
        if trial.returncode != 0:
            raise CourseError(
                f"students' code cannot be run here with an ordinary user's rights ({why}): grade as a user who is not "
                "root, or where Linux allows namespaces"
            )
    return why


def processors() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _one_each(workers: int) -> list[int | None]:
    """A processor for each worker, or None where there are not enough."""
    available = processors()
    return [*available[:workers]] if workers <= len(available) else [None] * workers


def _engine_hash() -> str:
    """Of everything in this package: a check may call any of it."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _content(notebook: "NotebookNode") -> list[list]:
    return [[cell.cell_type, cell.source, dict(cell.metadata.nbgrader)] for cell in notebook.cells]


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _remembered(path: Path) -> tuple[str, list[ExerciseResult]] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return known["status"], [ExerciseResult(**fields) for fields in known["exercises"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remember(path: Path, status: str, graded: list[ExerciseResult]) -> None:
    from course_utils.training import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps({"status": status, "exercises": [asdict(e) for e in graded]}), encoding="utf-8")
