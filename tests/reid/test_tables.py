"Tables as programs write them."
import pytest
from small_sets import images, message, rows_of # noqa: F401 (a fixture among them)

from vdistill.reid.manifests import CSVDataset
from vdistill.reid.tables import read_table


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_encodings(images, separator, encoding):
    text = "\r\n".join(["path,identity,camera,modality,split", *rows_of(names="Zoë {}")]).replace(",", separator) + "\r\n"
    (images/"set.csv").write_bytes(MARKS.get(encoding, b"") + text.encode(encoding))
    dataset = CSVDataset(images/"set.csv")
    assert len(dataset) == 16 and dataset.records.identity_name[0] == "Zoë 0" and dataset.records.path[3] == images/"1i.png"


def test_what_separates_and_encodes_is_said_where_it_cannot_be_told(images):
    file, text = images/"set.csv", "\n".join(["path,identity,camera,modality,split", *rows_of(names="Zoë {}")])
    for data, parts in {text.encode("cp1252"): ("line 2", "0xEB", "ë", "cp1252", "UTF-8"), text.encode("utf-16-le"): ("line 1", "NUL", "UTF-16"), text.replace(",", "|").encode(): ("no column path", "path|identity", "semicolons"),
                        text.replace("Zoë 3", "\0").encode(): ("line 8", "NUL"), b"\xff\xfea": ("not UTF-16",), text.encode("cp1252").replace(b"\xeb", b"\x81"): ("0x81",)}.items():
        file.write_bytes(data)
        said = message(CSVDataset, file)
        assert str(file) in said and all(part in said for part in parts), said
    file.write_text('sep=;\npath;identity;modality;split\n"0v.png";a;v;train\n0i.png; "a";i;train\n', encoding="utf-8")
    assert list(read_table(file, ["path", "split"]).line) == [3, 4] and list(read_table(file, ["path", "split"]).identity) == ["a", "a"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("odd", ["a\fb", "a\u2028b", "a\x85b", "a\x1cb", "a\vb"])
def test_odd_characters_within_a_cell(tmp_path, odd, end):
    (tmp_path/"t.csv").write_bytes(end.join(["name,x", f"{odd},1", "c,2", ""]).encode())
    table = read_table(tmp_path/"t.csv", ["name", "x"])
    assert list(table.name) == [odd, "c"] and list(table.line) == [2, 3]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_breaks_within_a_cell(tmp_path, end):
    "A row counts as the line on which it begins."
    (tmp_path/"t.csv").write_bytes(end.join(["name,x", '"a', 'b",1', "", 'c,"2', "", '3"', "d,4", ""]).encode())
    table = read_table(tmp_path/"t.csv", ["name", "x"])
    assert list(table.name) == [f"a{end}b", "c", "d"] and list(table.line) == [2, 5, 8]
    (tmp_path/"t.csv").write_bytes(end.join(["name,x", '"a', 'b",1', "c,", "d,4", ""]).encode())
    assert "line 4 has no x" in message(read_table, tmp_path/"t.csv", ["name", "x"])


def test_quotes_that_are_left_open(tmp_path):
    "They would swallow the lines that follow."
    for line in ('"a,1', '"a"b,1', '"a\nb,1\n'):
        (tmp_path/"t.csv").write_text(f"name,x\nz,0\n{line}\nc,2\n")
        assert "line 3" in (said := message(read_table, tmp_path/"t.csv", ["name", "x"])) and "quote" in said
