"""`python -m course_utils COMMAND`, also called `course-utils`."""

import os
import sys

from course_utils.commands.stopping import end_at_ctrl_c, is_of_ctrl_c
from course_utils.lean import spare_seconds


def main() -> None:
    """Run the command that the process was started with; Ctrl-C is heard before the first import that takes time."""
    end_at_ctrl_c()
    spare_seconds()
    from course_utils.commands import app

    app.main()


def program() -> None:
    """`main` in a process of its own, which after Ctrl-C ends at once.

    Threads of libraries may then still be at work, and what waits for them as Python ends can end in an abort.
    """
    try:
        main()
    except SystemExit as end:
        if not is_of_ctrl_c(end):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 2)


if __name__ == "__main__":
    program()
