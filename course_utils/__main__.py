"""`python -m course_utils COMMAND`."""

from course_utils.commands.app import main

if __name__ == "__main__":
    main()
