"""What a server says no with."""

from course_utils.errors import CourseError


class Refusal(CourseError):
    """One line for whoever asked, and the status of HTTP that goes with it."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status
