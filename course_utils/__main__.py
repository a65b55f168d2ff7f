"""`python -m course_utils COMMAND`, also called `course-utils`."""

from course_utils.commands.stopping import end_at_ctrl_c


def main() -> None:
    """Run the command that the process was started with; Ctrl-C is heard before the first import that takes time."""
    end_at_ctrl_c()
    from course_utils.commands import app

    app.main()


if __name__ == "__main__":
    main()
