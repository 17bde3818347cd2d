"""Invoices of 2024: one for each call, with lines that apply the 2024 tariff to what the call did."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from random import Random

from harbour_maker.world import TARIFFS

Row = dict[str, object]
_DUES = {
    "general": "PD-DRY",
    "coaster": "PD-DRY",
    "bulk": "PD-DRY",
    "container": "PD-CON",
    "tanker": "PD-TNK",
    "chemical": "PD-TNK",
    "roro": "PD-ROR",
    "cruise": "PD-CRU",
    "heavy": "PD-OFF",
    "offshore": "PD-OFF",
}
_RATE = {tariff.code: tariff.rate_2024 for tariff in TARIFFS}
_PLUG_SHARE = {"N3": 0.15, "W1": 0.5, "W2": 0.4, "R1": 0.3, "F1": 0.5, "F2": 0.5}
_POWER_KW = {"N3": 320, "W1": 410, "W2": 140, "R1": 780, "F1": 18, "F2": 16, "C1": 4300}
_SHORE_POWER_AT_SIGNAL_QUAY = datetime(2024, 5, 6)


def make_invoices(random: Random, calls: list[Row], vessels: list[Row]) -> tuple[list[Row], list[Row]]:
    """Invoices and their lines for the calls that arrived in 2024."""
    ship_of = {row["imo"]: row for row in vessels}
    billed = []
    for call in calls:
        arrived, left = call["ata"], call["atd"]
        assert isinstance(arrived, datetime) and isinstance(left, datetime)
        if arrived.year == 2024:
            billed.append((left.date() + timedelta(days=random.randint(3, 9)), call))
    billed.sort(key=lambda item: (item[0], str(item[1]["id"])))
    invoices: list[Row] = []
    lines: list[Row] = []
    for number, (issued, call) in enumerate(billed, 1):
        ship = ship_of[call["vessel_imo"]]
        invoice_no = f"INV-2024-{number:05d}"
        charged = charges(random, call, ship)
        for line, (code, quantity) in enumerate(charged, 1):
            rate = _RATE[code]
            assert rate is not None
            lines.append(
                {
                    "invoice_no": invoice_no,
                    "line": line,
                    "tariff_code": code,
                    "quantity": quantity,
                    "rate_eur": rate,
                    "amount_eur": round(quantity * rate, 2),
                }
            )
        total = round(sum(float(str(row["amount_eur"])) for row in lines[-len(charged) :]), 2)
        payer = call["agent_id"] if random.random() < 0.3 and ship["name"] != "Elbe Trader" else ship["operator_id"]
        invoices.append(
            {
                "invoice_no": invoice_no,
                "customer_id": payer,
                "call_id": call["id"],
                "issued": issued,
                "amount_eur": total,
            }
        )
    return invoices, lines


def add_payments(random: Random, invoices: list[Row], customers: list[Row]) -> None:
    """Due date from the customer's terms, and the day of payment (None while open)."""
    terms = {row["id"]: int(str(row["payment_terms_days"])) for row in customers}
    for invoice in invoices:
        issued = invoice["issued"]
        assert isinstance(issued, date)
        due = issued + timedelta(days=terms[invoice["customer_id"]])
        paid = due + timedelta(days=round(random.gauss(-3, 8))) if random.random() < 0.94 else None
        invoice["due"] = due
        invoice["paid_on"] = max(paid, issued) if paid else None
        invoice["status"] = "paid" if paid else "open"


def charges(random: Random, call: Row, ship: Row) -> list[tuple[str, float]]:
    """What a call owes: tariff codes with quantities, in the order of the tariff."""
    gt, loa, kind, berth = (
        int(str(ship["gt"])),
        float(str(ship["loa_m"])),
        str(ship["kind"]),
        str(call["berth_id"]),
    )
    arrived, left = call["ata"], call["atd"]
    assert isinstance(arrived, datetime) and isinstance(left, datetime)
    hours = (left - arrived).total_seconds() / 3600
    charged: list[tuple[str, float]] = [("PD-FSH", loa) if kind == "fishing" else (_DUES[kind], gt)]
    if berth == "L1":
        charged.append(("BER-LAY", round(loa * math.ceil(hours / 24), 1)))
    elif hours > 24:
        charged.append(("BER-M", round(loa * math.ceil(hours / 24 - 1), 1)))
    if call["pilot_id"] is not None:
        charged += [("PIL-BASE", 2), ("PIL-GT", 2 * gt)]
        if ship["name"] == "Elbe Trader" and str(arrived).startswith("2024-05-17"):
            charged.append(("PIL-WAIT", 6))
    tugs = int(str(call["tugs"]))
    if tugs:
        charged.append(("TUG-50", tugs + max(0, tugs - 1)))
    if kind != "fishing":
        charged.append(("MOR-OP" if loa >= 90 else "MOR-SML", 2))
    if berth.startswith("B"):
        charged.append(("LOCK", round(2 * loa, 1)))
    rate, least = _RATE["WST-GT"], _RATE["WST-MIN"]
    assert rate is not None and least is not None
    charged.append(("WST-GT", gt) if gt * rate > least else ("WST-MIN", 1))
    if kind != "fishing":
        charged.append(("SEC", 1))
    return charged + _extras(random, berth, kind, ship, arrived, hours)


def _extras(
    random: Random, berth: str, kind: str, ship: Row, arrived: datetime, hours: float
) -> list[tuple[str, float]]:
    extras: list[tuple[str, float]] = []
    if ship["name"] == "Polar Meridian" and str(arrived).startswith("2024-07-14"):
        extras += [("SHP-CON", 1), ("SHP-KWH", 61400)]
    elif (berth == "C1" and arrived >= _SHORE_POWER_AT_SIGNAL_QUAY) or random.random() < _PLUG_SHARE.get(berth, 0.0):
        extras += [
            ("SHP-CON", 1),
            ("SHP-KWH", round(_POWER_KW[berth] * max(1.0, hours - 1.5) * random.uniform(0.6, 1.0), -1)),
        ]
    if random.random() < 0.25:
        extras.append(("FWT-T", random.randint(10, 160)))
    if berth == "N3" and kind == "general":
        extras.append(("CRN-H", random.randint(4, 22)))
    return extras
