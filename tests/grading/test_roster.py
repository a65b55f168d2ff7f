"""The list of a class: what platforms export and people write is read, or refused in one line that names the line."""

import pytest

from course_utils.errors import CourseError
from course_utils.grading import roster
from course_utils.grading.roster import read_roster

PLAIN = "name,id\nAda Lovelace,7001\nJürgen Weiß,7002\n"


@pytest.fixture
def people(tmp_path):
    def people(content):
        path = tmp_path / "class.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [(person.label, {*person.ids}) for person in read_roster(path)]

    return people


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.encode("latin-1"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("\n", "\r\n", 1),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", " , "),
        "\n\n" + PLAIN.replace("\n", "\n,\n"),
        PLAIN.replace("Ada Lovelace", '"Ada\r\n Lovelace "'),
        PLAIN.replace("name,id", "NAME,Student-ID"),
        PLAIN.replace("ü", "u\u0308"),
        "Points,name,id\n3,Ada Lovelace,7001\n,Jürgen Weiß,7002\n",
        "name,id,\nAda Lovelace,7001,\nJürgen Weiß,7002,,,\n",
        "First name;Surname;ID number\nAda;Lovelace;7001\nJürgen;Weiß;7002\n",
    ],
)
def test_whatever_a_spreadsheet_writes_is_read(people, content):
    assert people(content) == [("Ada Lovelace", {"7001"}), ("Jürgen Weiß", {"7002"})]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name\nLovelace, Ada\n=SUM(A1)\n", [("Lovelace, Ada", set()), ("=SUM(A1)", set())]),
        ("Student\n\"Lovelace, Ada\"\n", [("Lovelace, Ada", set())]),
        ("id\n007\n8\n", [("007", {"007"}), ("8", {"8"})]),
        ("email\nAda@Uni.example\n", [("Ada@Uni.example", {"ada@uni.example"})]),
        (
            "name,id\nAda Smith,2\nAda Smith,1\n",
            [("Ada Smith (2)", {"2"}), ("Ada Smith (1)", {"1"})],
        ),
        (
            "Student,ID,SIS User ID,SIS Login ID,Section\n    Points Possible,,,,\n\"Lovelace, Ada\",5,A7,ada,1\n",
            [("Lovelace, Ada", {"5", "a7", "ada"})],
        ),
        (
            '"identifier","github_username","github_id","name"\n"ada@uni.example","adalove","123","Ada"\n',
            [("Ada", {"ada@uni.example", "adalove"})],
        ),
        ("name,id\nAda\n", [("Ada", set())]),
    ],
)  # fmt: skip
def test_exports_and_single_columns_are_read(people, content, expected):
    assert people(content) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "class.csv is empty: give a table"),
        (" \n,\n", "class.csv is empty"),
        ("name,id\n", "class.csv names nobody: give a line for each student"),
        ("Ada Lovelace,7001\n", "class.csv, line 1 names no column name, id or email, but 'Ada Lovelace, 7001'"),
        ("Ada Lovelace\nAlan Turing\n", "line 1 names no column name, id or email, but 'Ada Lovelace'"),
        ("name,id\nAda,1\nAlan,1\n", "line 3 and line 2 are both '1': leave one out, or give each an id of its own"),
        ("name,id\nAda,1\n\nAda,1\n", "line 4 and line 2 are both "),
        ("name\nAda\nADA\n", "line 3 and line 2 are both 'ada'"),
        ("email\na@b\nA@B\n", "line 3 and line 2 are both 'a@b'"),
        ("name,id\nLovelace, Ada,1\n", "line 2 has 3 cells, and the first line 2: put a text that holds"),
        ("name,id,x\n,,7\n", "line 2 names nobody: fill in"),
        ("name,name\nAda,B\n", "line 1 has two columns of names"),
        ('name,id\n"Ada,1\nAlan,2\n', r"class.csv is no table that can be read \(.*\): save it as CSV again"),
        (b"PK\x03\x04\x00\x00name", "class.csv is no text: save the roster as CSV in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "class.csv is no text"),
        (b"\xff\xfen\x00a\xd8", "class.csv is no text"),
        ("name,id\nAda\x00,1\n", "class.csv is no text"),
        ("name\n" + "x" * 200_000, "no table that can be read"),
    ],
)
def test_what_is_no_roster_is_refused_in_one_line(people, content, message):
    with pytest.raises(CourseError, match=message) as refused:
        people(content)
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_no_table_or_is_too_large_is_refused(tmp_path, monkeypatch):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(CourseError, match=r"cannot be read \(.*\): name the roster, a CSV file"):
            read_roster(path)
    (tmp_path / "class.csv").write_text(PLAIN, encoding="utf-8")
    monkeypatch.setattr(roster, "LARGEST", 10)
    with pytest.raises(CourseError, match="is larger than 1e-05 MB"):
        read_roster(tmp_path / "class.csv")
