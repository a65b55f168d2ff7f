"""What speaks to the user rather than to the programmer: two exceptions and one warning."""


class CourseError(Exception):
    """Something the user can mend.

    The message is a single line that says what is wrong, where, and what to do next. The command line prints it
    behind `error:` and exits with code 2; a notebook shows it as the last line of its traceback.
    """


class Told(CourseError):
    """Another process of the same run has told, or will tell, why it ends: a command ends silently, with its code."""


class CourseWarning(UserWarning):
    """Something the user should know of a result that is there all the same; the command line prints it as a line."""
