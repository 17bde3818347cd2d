"""Makes every table and office document of `examples/harbour`, and the truth files beside it.

    python examples/make_harbour.py [--out FOLDER]

Fixed seed, no clock: two runs with the same library versions write the same bytes.
Plain prose (text, Markdown, HTML, code) is written by hand and lies in `examples/harbour` as it is.
"""

from __future__ import annotations

import argparse
import shutil
from datetime import datetime
from pathlib import Path
from random import Random

from harbour_maker import billing, customers, incidents, premises, traffic
from harbour_maker.documents import write_document
from harbour_maker.tablefiles import as_sheet, write_csv, write_jsonl, write_parquet, write_workbook
from harbour_maker.world import TARIFFS

HERE = Path(__file__).resolve().parent
SEED = 1874  # the year the Old Basin lock was opened
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets harbour/ and harbour_truth/")
    out = parser.parse_args().out
    tables = make_tables()
    write_tables(out / "harbour", tables)
    write_documents(out / "harbour")
    write_copies(out / "harbour")
    write_truth(out / "harbour_truth", tables)


def make_tables() -> dict[str, list[Row]]:
    """Every table as rows; one seed a table, so that a change to one leaves the others as they are."""
    tables: dict[str, list[Row]] = {}
    clients = customers.make_customers(Random(SEED + 1))
    tables["customers"] = clients
    tables["old_clients"], tables["client_truth"] = customers.make_old_clients(Random(SEED + 2), clients)
    owners = {
        "cargo": [row for row in clients if row["kind"] == "operator"],
        "fishing": [row for row in clients if row["kind"] == "fishing"],
    }
    by_name = {str(row["name"]): int(str(row["id"])) for row in clients}
    vessels = tables["vessels"] = traffic.make_vessels(Random(SEED + 3), owners, by_name)
    pilots = tables["pilots"] = traffic.make_pilots(Random(SEED + 4))
    tables["berths"] = traffic.berth_rows()
    agents = [row for row in clients if row["kind"] == "agent"]
    calls = tables["calls"] = traffic.make_calls(Random(SEED + 5), vessels, pilots, agents)
    tables["cargo"] = traffic.make_cargo(Random(SEED + 6), calls, vessels)
    tables["invoices"], tables["lines"] = billing.make_invoices(Random(SEED + 7), calls, vessels)
    billing.add_payments(Random(SEED + 8), tables["invoices"], clients)
    tables["incidents"] = incidents.make_incidents(Random(SEED + 9), calls, vessels)
    tables["soundings"] = premises.make_soundings(Random(SEED + 10))
    tables["bollards"] = premises.make_bollards(Random(SEED + 11))
    tables["drawings"] = premises.make_drawings(Random(SEED + 12))
    tables["staff"] = premises.make_staff(Random(SEED + 13), pilots)
    service = premises.load_tide_service(HERE / "harbour")
    tables["tides"] = premises.make_tides(service, 2024)
    tables["gauge"] = premises.make_gauge_log(Random(SEED + 14), service["height"])
    return tables


def write_tables(harbour: Path, tables: dict[str, list[Row]]) -> None:
    """The tables as files, with the exports and copies that a shared drive collects."""
    data, finance = harbour / "data", harbour / "Finance"
    for name in ("vessels", "berths", "pilots"):
        write_csv(data / f"{name}.csv", tables[name])
    for name in ("calls", "cargo"):
        write_parquet(data / f"{name}.parquet", tables[name])
    write_csv(data / "tides_2024.csv", tables["tides"])
    write_jsonl(data / "tide_gauge_SIG_2024-10.jsonl", tables["gauge"])
    write_csv(
        harbour / "Archive/exports/calls_2024.csv",
        [row for row in tables["calls"] if _year(row["ata"]) == 2024],
    )
    write_csv(
        harbour / "Operations/Berth occupancy 2023.csv",
        [row for row in tables["calls"] if _year(row["ata"]) == 2023],
        ("id", "berth_id", "ata", "atd"),
    )
    write_csv(harbour / "Safety/incidents.csv", tables["incidents"])
    write_csv(
        harbour / "Safety/dangerous_goods.csv",
        [row for row in tables["cargo"] if row["imdg_class"] is not None],
        ("id", "call_id", "commodity", "un_number", "imdg_class", "tonnes"),
    )
    write_csv(finance / "customers.csv", tables["customers"])
    write_csv(harbour / "Archive/old_client_list.tsv", tables["old_clients"], delimiter="\t")
    write_csv(
        finance / "invoices_2024.csv",
        tables["invoices"],
        ("invoice_no", "customer_id", "call_id", "issued", "due", "amount_eur", "status", "paid_on"),
    )
    write_parquet(finance / "invoice_lines_2024.parquet", tables["lines"])
    still_open = [row for row in tables["invoices"] if row["status"] == "open"]
    write_workbook(
        finance / "Open invoices.xlsx",
        {"Open": as_sheet(still_open, ("invoice_no", "customer_id", "call_id", "issued", "due", "amount_eur"))},
    )
    write_tariffs(harbour)
    engineering = harbour / "Engineering"
    write_csv(engineering / "soundings_2023-10.csv", tables["soundings"])
    write_csv(engineering / "drawing_register.tsv", tables["drawings"], delimiter="\t")
    write_workbook(
        engineering / "Bollard survey 2024.xlsx",
        {"Survey": as_sheet(tables["bollards"]), "Summary": _bollard_summary(tables["bollards"])},
    )
    write_workbook(harbour / "HR/staff_directory.xlsx", {"Staff": as_sheet(tables["staff"])})


def write_documents(harbour: Path) -> None:
    """PDF, DOCX and PPTX from their Markdown sources."""
    sources = HERE / "harbour_source"
    for source in sorted(sources.rglob("*.md")):
        write_document(source, harbour / source.relative_to(sources).with_suffix(""))


# Copies that people left behind: the copy, and the file it is a copy of.
_LOCK, _REPORT = "Old Basin lock operating instructions", "INC-2024-031 Maren Kirstine.docx"
COPIES = {
    "Archive/tariff_2024 FINAL (2).csv": "Tariffs/tariff_2024.csv",
    "Archive/Copy of Berth N2.md": "Operations/Berth cards/Berth N2.md",
    f"Archive/{_LOCK} (1).txt": f"Operations/Lock/{_LOCK}.txt",
    f"Finance/Mail/attachments/{_REPORT}": f"Safety/Reports/{_REPORT}",
}


def write_copies(harbour: Path) -> None:
    """Exact copies under other names; hand-written originals are taken from the committed folder."""
    for copy, original in COPIES.items():
        source = harbour / original if (harbour / original).exists() else HERE / "harbour" / original
        (harbour / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, harbour / copy)


def write_tariffs(harbour: Path) -> None:
    """The tariff of 2024 as CSV, that of 2025 as a workbook."""
    lines_2024: list[Row] = [
        {
            "code": t.code,
            "section": t.section,
            "description": t.description,
            "unit": t.unit,
            "rate_eur": t.rate_2024,
        }
        for t in TARIFFS
        if t.rate_2024 is not None
    ]
    write_csv(harbour / "Tariffs/tariff_2024.csv", lines_2024)
    sheet: list[list[object]] = [["code", "section", "description", "unit", "rate_eur"]]
    sheet += [[t.code, t.section, t.description, t.unit, t.rate_2025] for t in TARIFFS]
    rebates: list[list[object]] = [
        ["rebate", "condition", "percent", "applies to"],
        ["Green ship", "ESI score above 40 on the day of arrival", 10, "port dues"],
        ["Frequent caller", "from the 25th call in a calendar year", 6, "port dues"],
        ["Shore power", "connected for at least 80 % of the stay", 5, "port dues"],
        ["Short sea feeder", "container ships under 10,000 GT on a published schedule", 8, "port dues"],
    ]
    write_workbook(harbour / "Tariffs/Tariff 2025.xlsx", {"Tariff": sheet, "Rebates": rebates})


def _bollard_summary(bollards: list[Row]) -> list[list[object]]:
    sheet: list[list[object]] = [["berth_id", "bollards", "A", "B", "C", "D"]]
    for berth in dict.fromkeys(row["berth_id"] for row in bollards):
        grades = [row["condition"] for row in bollards if row["berth_id"] == berth]
        sheet.append([berth, len(grades), *(grades.count(grade) for grade in "ABCD")])
    return sheet


def _year(moment: object) -> int:
    assert isinstance(moment, datetime)
    return moment.year


def write_truth(folder: Path, tables: dict[str, list[Row]]) -> None:
    """What a matcher of customers should find; keys, containments and duplicates are written by hand."""
    write_csv(
        folder / "customer_matches.csv",
        sorted(tables["client_truth"], key=lambda row: int(str(row["client_no"]))),
    )


if __name__ == "__main__":
    main()
