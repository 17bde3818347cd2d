"""The sample folder is what its truth files, its script and its questions say it is."""

from __future__ import annotations

import csv
import hashlib
import html.parser
import json
import re
import subprocess
import sys
import unicodedata
import zipfile
from collections import Counter
from datetime import datetime
from functools import cache
from pathlib import Path

import openpyxl
import pyarrow.parquet as pq
import pypdfium2
import pytest
from lxml import etree

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HARBOUR = EXAMPLES / "harbour"
TRUTH = EXAMPLES / "harbour_truth"
MEGABYTE = 1 << 20
KINDS = {"fact", "number", "procedure", "table-row", "two-files", "unanswerable"}
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def load_json(name: str) -> object:
    return json.loads((TRUTH / name).read_text(encoding="utf-8"))


QUESTIONS = [
    json.loads(line) for line in (EXAMPLES / "harbour_questions.jsonl").read_text(encoding="utf-8").splitlines()
]
KEYS = load_json("keys.json")
CONTAINMENTS = load_json("containments.json")
DUPLICATES = load_json("duplicates.json")


def files() -> list[Path]:
    # `make demo` leaves its index beside the files.
    return [path for path in HARBOUR.rglob("*") if path.is_file() and ".windlass" not in path.parts]


# ---- readers written for this test: plain, and apart from those of the product


def rendered(value: object) -> str:
    """One spelling for a cell, whatever format it was kept in."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        value = value.strftime("%Y-%m-%d %H:%M:%S")
    text = str(value).removesuffix(" 00:00:00")
    return str(float(text)).removesuffix(".0") if re.fullmatch(r"-?\d+\.\d+", text) else text


@cache
def table(name: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rendered rows of `path` or `path#sheet`."""
    path, _, sheet = name.partition("#")
    if path.endswith(".xlsx"):
        book = openpyxl.load_workbook(HARBOUR / path, read_only=True)
        rows = [list(row) for row in book[sheet or book.sheetnames[0]].iter_rows(values_only=True)]
        columns, body = rows[0], rows[1:]
    elif path.endswith(".parquet"):
        arrow = pq.read_table(HARBOUR / path)
        columns, body = arrow.column_names, [list(row.values()) for row in arrow.to_pylist()]
    elif path.endswith(".jsonl"):
        records = [json.loads(line) for line in (HARBOUR / path).read_text(encoding="utf-8").splitlines()]
        columns, body = list(records[0]), [list(record.values()) for record in records]
    else:
        with (HARBOUR / path).open(encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream, delimiter="\t" if path.endswith(".tsv") else ","))
        columns, body = lines[0], lines[1:]
    return tuple(str(column) for column in columns), [tuple(rendered(cell) for cell in row) for row in body]


def column(name: str, wanted: str) -> list[str]:
    columns, rows = table(name)
    at = columns.index(wanted)
    return [row[at] for row in rows]


class _Visible(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def docx_text(path: Path) -> str:
    """Paragraphs, and table rows with ` | ` between their cells."""
    with zipfile.ZipFile(path) as package:
        body = etree.fromstring(package.read("word/document.xml"))[0]
    lines = []
    for block in body:
        if block.tag == f"{WORD}tbl":
            rows = [["".join(cell.itertext()) for cell in row.iter(f"{WORD}tc")] for row in block.iter(f"{WORD}tr")]
            lines += [" | ".join(row) for row in rows]
        else:
            lines.append("".join(block.itertext()))
    return "\n".join(lines)


@cache
def text_of(name: str) -> str:
    """What a person reads in the file, with runs of white space made one space."""
    path = HARBOUR / name
    if path.suffix == ".pdf":
        pdf = pypdfium2.PdfDocument(path)
        text = "\n".join(page.get_textpage().get_text_range() for page in pdf)
    elif path.suffix == ".docx":
        text = docx_text(path)
    elif path.suffix == ".html":
        parser = _Visible()
        parser.feed(path.read_text(encoding="utf-8"))
        text = "".join(parser.parts)
    elif path.suffix in (".xlsx", ".parquet"):
        text = "\n".join(" | ".join(row) for row in table(name)[1])
    else:
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("cp1252")
    return squeezed(text)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def stands_in(quote: str, name: str) -> bool:
    """Whether the quote stands in the file; a table row of a PDF has white space where its cells end."""
    if name.endswith(".pdf"):
        quote = quote.replace(" | ", " ")
    return squeezed(quote) in text_of(name)


# ---- the folder


def test_size_and_number_of_files() -> None:
    sizes = {path: path.stat().st_size for path in files()}
    assert 55 <= len(sizes) <= 95
    assert sum(sizes.values()) <= 8 * MEGABYTE
    assert max(sizes.values()) <= 1.5 * MEGABYTE


def test_every_format_is_there() -> None:
    found = {path.suffix for path in files()}
    wanted = ".md .txt .html .pdf .docx .pptx .xlsx .csv .tsv .parquet .json .jsonl .py .sql".split()
    assert found == set(wanted)


def test_one_file_is_not_utf8_and_names_are_composed() -> None:
    def is_utf8(path: Path) -> bool:
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return False
        return True

    odd = [path.name for path in files() if path.suffix in (".txt", ".md", ".html", ".csv") and not is_utf8(path)]
    assert odd == ["Brief Schiffahrtsmuseum 1998.txt"]
    assert "ƒ 1,\N{EN DASH}" in text_of("Archive/Brief Schiffahrtsmuseum 1998.txt")
    assert all(unicodedata.is_normalized("NFC", path.name) for path in files())


# ---- the script


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harbour")
    script = EXAMPLES / "make_harbour.py"
    subprocess.run([sys.executable, str(script), "--out", str(out)], check=True, timeout=100)
    return out


def test_the_script_makes_the_committed_files(remade: Path) -> None:
    made = [path for path in (remade / "harbour").rglob("*") if path.is_file()]
    assert len(made) >= 36
    for path in made:
        committed = HARBOUR / path.relative_to(remade / "harbour")
        assert decoded(path) == decoded(committed), committed
    matches = "customer_matches.csv"
    assert (remade / "harbour_truth" / matches).read_bytes() == (TRUTH / matches).read_bytes()


def decoded(path: Path) -> object:
    """The content of a file without what a newer library may write differently."""
    if path.suffix == ".parquet":
        return pq.read_table(path).replace_schema_metadata(None).to_pydict()
    if path.suffix == ".xlsx":
        book = openpyxl.load_workbook(path, read_only=True)
        return {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book}
    if path.suffix == ".pdf":
        return [page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(path)]
    if path.suffix in (".docx", ".pptx"):
        with zipfile.ZipFile(path) as package:
            parts = sorted(name for name in package.namelist() if re.search(r"document\.xml|slides/slide", name))
            return ["".join(etree.fromstring(package.read(p)).itertext()) for p in parts if p.endswith(".xml")]
    return path.read_bytes()


def test_office_files_carry_no_clock() -> None:
    for path in files():
        if path.suffix in (".docx", ".pptx", ".xlsx"):
            with zipfile.ZipFile(path) as package:
                assert {member.date_time for member in package.infolist()} == {(2025, 1, 6, 9, 0, 0)}, path


# ---- the truth about the tables


@pytest.mark.parametrize("key", KEYS["primary"], ids=lambda key: key["table"])
def test_primary_keys_are_unique(key: dict) -> None:
    columns, rows = table(key["table"])
    places = [columns.index(name) for name in key["columns"]]
    values = [tuple(row[at] for at in places) for row in rows]
    assert len(set(values)) == len(values)
    assert not any("" in value for value in values)


@pytest.mark.parametrize("key", KEYS["foreign"], ids=lambda key: f"{key['table']}.{key['column']}")
def test_foreign_keys_hold(key: dict) -> None:
    values = column(key["table"], key["column"])
    known = set(column(key["references"], key["key"]))
    assert ("" in values) == key["nullable"]
    assert {value for value in values if value} <= known


@pytest.mark.parametrize("pair", CONTAINMENTS, ids=lambda pair: pair["contained"])
def test_contained_tables(pair: dict) -> None:
    columns, rows = table(pair["contained"])
    outer, outer_rows = table(pair["container"])
    assert columns == (outer if pair["columns"] == "all" else tuple(pair["columns"]))
    places = [outer.index(name) for name in columns]
    known = {tuple(row[at] for at in places) for row in outer_rows}
    assert rows and set(rows) <= known
    assert (len(rows) < len(outer_rows)) == (pair["rows"] != "all")


def test_exact_duplicates_are_those_listed() -> None:
    groups: dict[str, set[str]] = {}
    for path in files():
        name = path.relative_to(HARBOUR).as_posix()
        groups.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), set()).add(name)
    found = {frozenset(group) for group in groups.values() if len(group) > 1}
    assert found == {frozenset(group) for group in DUPLICATES["exact"]}


@pytest.mark.parametrize("pair", DUPLICATES["near"], ids=lambda pair: pair["newer"])
def test_near_duplicates_share_most_words(pair: dict) -> None:
    older, newer = (Counter(text_of(pair[side]).split()) for side in ("older", "newer"))
    shared = (older & newer).total() / (older | newer).total()
    assert 0.5 < shared < 1.0


def test_customer_matches() -> None:
    with (TRUTH / "customer_matches.csv").open(encoding="utf-8") as stream:
        truth = {row["client_no"]: row["customer_id"] for row in csv.DictReader(stream)}
    assert set(truth) == set(column("Archive/old_client_list.tsv", "client_no"))
    matched = [customer for customer in truth.values() if customer]
    assert set(matched) <= set(column("Finance/customers.csv", "id"))
    assert len(matched) >= 300 and len(truth) - len(matched) >= 100
    assert max(Counter(matched).values()) == 2


# ---- rules of the port that the rows must obey


def test_ships_fit_their_berths_and_never_share_one() -> None:
    berths = {row[0]: dict(zip(table("data/berths.csv")[0], row, strict=True)) for row in table("data/berths.csv")[1]}
    lengths = dict(zip(column("data/vessels.csv", "imo"), column("data/vessels.csv", "loa_m"), strict=True))
    columns, rows = table("data/calls.parquet")
    calls = [dict(zip(columns, row, strict=True)) for row in rows]
    for call in calls:
        berth = berths[call["berth_id"]]
        assert float(lengths[call["vessel_imo"]]) <= float(berth["max_loa_m"]), call
        deepest = max(float(call["draught_in_m"]), float(call["draught_out_m"]))
        assert deepest <= float(berth["max_draught_m"]), call
    for place in ("berth_id", "vessel_imo"):
        left: dict[str, str] = {}
        for call in sorted(calls, key=lambda call: call["ata"]):
            assert left.get(call[place], "") < call["ata"] < call["atd"], call
            left[call[place]] = call["atd"]


def test_imo_numbers_have_their_check_digit() -> None:
    for imo in column("data/vessels.csv", "imo"):
        assert len(imo) == 7
        assert sum(int(digit) * weight for digit, weight in zip(imo[:6], range(7, 1, -1), strict=True)) % 10 == int(
            imo[6]
        )


def test_invoice_lines_add_up() -> None:
    sums: dict[str, float] = {}
    columns, rows = table("Finance/invoice_lines_2024.parquet")
    for row in rows:
        line = dict(zip(columns, row, strict=True))
        sums[line["invoice_no"]] = sums.get(line["invoice_no"], 0.0) + float(line["amount_eur"])
    amounts = column("Finance/invoices_2024.csv", "amount_eur")
    for number, amount in zip(column("Finance/invoices_2024.csv", "invoice_no"), amounts, strict=True):
        assert sums[number] == pytest.approx(float(amount), abs=0.005)


def test_prose_agrees_with_the_tables() -> None:
    calls = column("data/calls.parquet", "ata")
    review = text_of("Finance/Annual Review 2023.pdf")
    for year in ("2022", "2023"):
        assert f"{sum(moment.startswith(year) for moment in calls):,}" in review
    incidents = column("Safety/incidents.csv", "id")
    assert f"{sum('-2023-' in number for number in incidents)} entries" in review
    kinds = zip(column("Safety/incidents.csv", "category"), incidents, strict=True)
    mooring = [number for kind, number in kinds if kind == "mooring" and "-2023-" in number]
    with zipfile.ZipFile(HARBOUR / "Safety/Toolbox talk - mooring lines.pptx") as deck:
        assert f"{len(mooring)} entries about mooring" in deck.read("ppt/slides/slide2.xml").decode()
    gauge = [json.loads(line) for line in (HARBOUR / "data/tide_gauge_SIG_2024-10.jsonl").read_text().splitlines()]
    highest = max((r for r in gauge if r["quality"] == "good"), key=lambda reading: reading["level_m"])
    assert highest["ts"] == "2024-10-14T05:30:00"
    assert f"{highest['level_m']:.2f} m at 05:30" in text_of("Operations/Minutes/2024-10-24 Operations meeting.txt")
    assert "45 readings were lost" in text_of("IT/wiki/Post-mortem 2024-10-16 tide service outage.md")
    assert len(gauge) == 14 * 144 - 45
    amounts = dict(
        zip(
            column("Finance/invoices_2024.csv", "invoice_no"),
            column("Finance/invoices_2024.csv", "amount_eur"),
            strict=True,
        )
    )
    assert float(amounts["INV-2024-00603"]) == 8977.98


# ---- the questions


def test_forty_questions_of_the_agreed_mix() -> None:
    assert len(QUESTIONS) == 40
    assert len({question["id"] for question in QUESTIONS}) == 40
    kinds = Counter(question["kind"] for question in QUESTIONS)
    assert set(kinds) == KINDS
    assert kinds["table-row"] == 8 and kinds["unanswerable"] == 6 and kinds["two-files"] == 2
    assert sum(bool(question.get("paraphrased")) for question in QUESTIONS) == 4
    suffixes = {Path(question["file"]).suffix for question in QUESTIONS if question["file"]}
    assert {".pdf", ".docx", ".html", ".md", ".txt", ".csv", ".xlsx", ".parquet"} <= suffixes


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["id"])
def test_question(question: dict) -> None:
    assert question["answer"] in question["answers"]
    if question["kind"] == "unanswerable":
        assert question["file"] is None and question["quote"] is None and question["answer"] == "not found"
        return
    assert stands_in(question["quote"], question["file"])
    for name, quote in zip(question.get("files", []), question.get("quotes", []), strict=True):
        assert stands_in(quote, name)
    assert all((HARBOUR / name).is_file() for name in question.get("also", []))
    # a quoted sentence stands in no file that is not accepted as a source
    accepted = {question["file"], *question.get("also", []), *question.get("files", [])}
    for path in files():
        name = path.relative_to(HARBOUR).as_posix()
        if name not in accepted and path.suffix not in (".pptx", ".py", ".sql", ".json", ".jsonl"):
            assert not stands_in(question["quote"], name), name
