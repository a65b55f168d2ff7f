"""Study minutes of every page from what stands on it; `python docs/study_minutes.py` writes them into teaching-plan.md.

The estimate has four parts, each rounded to five minutes at the end:

- reading: the words of a page's Markdown, at 200 a minute, and a minute for each figure;
- code: a minute for each code cell after the setup cell, and another one if it has more than 10 lines;
- predicting: two minutes for each "Predict", to write the guess down and to compare it;
- exercises: 10, 20 or 45 minutes for each "Try it" that is marked easy, middle or hard, and 15 for one without a mark.

Running is part of it: the page's own minutes on a CPU are added to the second part. The rates are conventions, not
measurements; time your own class and change them here.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLAN = ROOT / "docs" / "teaching-plan.md"
WORDS_A_MINUTE = 200
LONG_CELL = 10  # lines
MINUTES_OF_LEVEL = {"easy": 10, "middle": 20, "hard": 45, None: 15}


def pages(root: Path = ROOT) -> dict[str, Path]:
    """The notebooks by their two-digit numbers."""
    return {path.name[:2]: path for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def study_minutes(page: Path) -> tuple[int, int]:
    """Minutes of a page without its exercises, and of the exercises alone, each a multiple of five."""
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    markdown = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][1:]
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    figures = sum("image/png" in output.get("data", {}) for output in shown)
    reading = len(markdown.split()) / WORDS_A_MINUTE + figures
    running = sum(1 + (len(text.splitlines()) > LONG_CELL) for text in code)
    minutes = re.search(r"^\|\s*minutes\s*\|\s*<?([\d.]+)", markdown, re.MULTILINE)
    running += float(minutes[1]) if minutes else 0
    predicting = 2 * len(re.findall(r"\*\*Predict", markdown))
    exercises = sum(MINUTES_OF_LEVEL[level] for level in exercise_levels(markdown))
    return _fives(reading + running + predicting), _fives(exercises)


def exercise_levels(markdown: str) -> list[str | None]:
    """The level of each exercise below "Try it", None where it has no mark."""
    section = re.search(r"\*\*Try it\.?\*\*(.*?)(?=\n\n\*\*|\n#|\Z)", markdown, re.DOTALL)
    if section is None:
        return []
    levels = re.findall(r"^\d+\.\s+(?:\*\((easy|middle|hard)\)\*)?", section[1], re.MULTILINE)
    return [level or None for level in levels]


def _fives(minutes: float) -> int:
    return 5 * round(minutes / 5)


ROW = re.compile(r"^(\| \[?(\d\d) [A-Z][^|]*\|[^|]*\|[^|]*\|)[^|]*\|[^|]*\|$", re.MULTILINE)


WEEK = re.compile(r"^(\| \d+ \|([^|]*)\|([^|]*)\|[^|]*\|[^|]*\|)[^|]*\|$", re.MULTILINE)


def assignment_minutes(number: str, root: Path = ROOT) -> float:
    """What the first cell of an assignment says."""
    (path,) = (root / "notebooks" / "assignments").glob(f"0{number}_*.ipynb")
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return float(re.search(r"^\|\s*minutes\s*\|\s*(\d+)", first, re.MULTILINE)[1])


def brought_up_to_date(plan: str, root: Path = ROOT) -> str:
    """The plan with the minutes of every page that exists in its row, and the hours of every week."""
    existing = pages(root)

    def week(match: re.Match[str]) -> str:
        minutes = sum(study_minutes(existing[number])[0] for number in re.findall(r"\d\d", match[2]))
        for half, number in re.findall(r"(½ )?A(\d)", match[3]):
            minutes += assignment_minutes(number, root) / (2 if half else 1)
        return f"{match[1]} {minutes / 60:.1f} |"

    def row(match: re.Match[str]) -> str:
        if match[2] not in existing:
            return f"{match[1]} – | – |"
        minutes, exercises = study_minutes(existing[match[2]])
        return f"{match[1]} {minutes} | {exercises} |"

    return WEEK.sub(week, ROW.sub(row, plan))


if __name__ == "__main__":
    text = PLAN.read_text(encoding="utf-8")
    new = brought_up_to_date(text)
    PLAN.write_text(new, encoding="utf-8")
    print("changed" if new != text else "up to date", file=sys.stderr)
