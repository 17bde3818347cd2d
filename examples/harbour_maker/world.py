"""What was decided by hand about Ravensholm: berths, tariffs, and the ships and calls the prose speaks of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

FIRST_DAY = datetime(2022, 1, 1)
LAST_DAY = datetime(2024, 12, 31, 23, 55)


@dataclass(frozen=True)
class Berth:
    """One row of `data/berths.csv`; `trades` says which kinds of ship use it and is not written out."""

    id: str
    name: str
    quay: str
    length_m: float
    depth_cd_m: float
    max_loa_m: float
    max_draught_m: float
    max_swl_t: int
    shore_power_kw: int
    working_hours: str
    remarks: str
    trades: tuple[str, ...]
    busy: float


BERTHS: tuple[Berth, ...] = (
    Berth("N1", "North Quay 1", "North Quay", 185, 8.5, 165, 8.0, 60, 0, "06:00-22:00",
          "Aggregates hopper; rail siding 2", ("bulk", "general"), 0.29),
    Berth("N2", "North Quay 2", "North Quay", 210, 9.5, 190, 9.0, 80, 0, "06:00-22:00",
          "Dry bulk grabs; dust screen along the road side", ("bulk",), 0.30),
    Berth("N3", "North Quay 3", "North Quay", 210, 10.2, 200, 9.6, 80, 800, "00:00-24:00",
          "Containers and general cargo; crane 4", ("container", "general"), 0.36),
    Berth("N4", "North Quay 4", "North Quay", 160, 8.0, 145, 7.5, 60, 0, "06:00-22:00",
          "Steel and sawn timber; shed 9 alongside", ("general",), 0.24),
    Berth("S1", "South Quay 1", "South Quay", 150, 7.5, 135, 7.0, 40, 0, "06:00-22:00",
          "General cargo", ("general",), 0.19),
    Berth("S2", "South Quay 2", "South Quay", 150, 7.5, 135, 7.0, 40, 0, "06:00-22:00",
          "General cargo; timber fenders until the 2025 replacement", ("general",), 0.17),
    Berth("S3", "South Quay 3", "South Quay", 180, 8.8, 160, 8.3, 80, 0, "00:00-24:00",
          "Project cargo; heavy lift pad 25 t/m2", ("general", "heavy"), 0.20),
    Berth("S4", "South Quay 4", "South Quay", 140, 7.0, 125, 6.2, 40, 0, "06:00-22:00",
          "Draught reduced after the October 2023 survey", ("general",), 0.13),
    Berth("S5", "South Quay 5", "South Quay", 120, 6.5, 105, 6.0, 30, 0, "06:00-22:00",
          "Bunker barge and offshore supply", ("general", "offshore"), 0.15),
    Berth("T1", "Tanker Jetty 1", "Tanker Jetty", 175, 10.5, 160, 9.8, 60, 0, "00:00-24:00",
          "Products over 37 C flash point and naphtha; two loading arms", ("tanker",), 0.26),
    Berth("T2", "Tanker Jetty 2", "Tanker Jetty", 130, 8.2, 115, 7.6, 40, 0, "00:00-24:00",
          "Chemicals and vegetable oils; hose only", ("chemical",), 0.19),
    Berth("R1", "Ro-Ro 1", "Ro-Ro Terminal", 200, 7.8, 195, 7.2, 60, 2000, "00:00-24:00",
          "Double linkspan, 180 t", ("roro",), 0.17),
    Berth("R2", "Ro-Ro 2", "Ro-Ro Terminal", 165, 7.0, 155, 6.4, 60, 0, "00:00-24:00",
          "Single linkspan, 90 t", ("roro",), 0.12),
    Berth("B1", "Old Basin 1", "Old Basin", 110, 5.8, 88, 5.2, 20, 0, "06:00-22:00",
          "Behind the lock, depth at basin level; grain spout", ("coaster",), 0.16),
    Berth("B2", "Old Basin 2", "Old Basin", 95, 5.8, 88, 5.2, 20, 0, "06:00-22:00",
          "Behind the lock, depth at basin level", ("coaster",), 0.13),
    Berth("B3", "Old Basin 3", "Old Basin", 95, 5.8, 88, 5.2, 20, 0, "06:00-22:00",
          "Behind the lock, depth at basin level; museum ship on the inner end", ("coaster",), 0.09),
    Berth("B4", "Old Basin 4", "Old Basin", 80, 5.5, 75, 4.9, 15, 0, "06:00-22:00",
          "Behind the lock, depth at basin level; small repairs allowed", ("coaster", "fishing"), 0.09),
    Berth("F1", "Fish Quay 1", "Fish Quay", 90, 5.0, 60, 4.6, 10, 60, "00:00-24:00",
          "Ice plant and auction hall", ("fishing",), 0.15),
    Berth("F2", "Fish Quay 2", "Fish Quay", 75, 4.5, 45, 4.1, 10, 60, "00:00-24:00",
          "Net mending only between landings", ("fishing",), 0.11),
    Berth("C1", "Signal Quay", "Signal Quay", 250, 9.0, 230, 8.5, 100, 6500, "06:00-23:00",
          "Cruise terminal; shore power since May 2024", ("cruise",), 0.09),
    Berth("W1", "Wind Quay 1", "Wind Quay", 220, 9.8, 200, 9.2, 100, 1200, "00:00-24:00",
          "Turbine pre-assembly; ground load 30 t/m2", ("heavy",), 0.22),
    Berth("W2", "Wind Quay 2", "Wind Quay", 140, 8.0, 125, 7.4, 60, 400, "00:00-24:00",
          "Crew transfer and offshore supply", ("offshore",), 0.20),
    Berth("L1", "Lay-by", "Inner Harbour", 130, 6.0, 115, 5.5, 30, 0, "00:00-24:00",
          "No cargo work; waiting and repairs", ("offshore", "general"), 0.12),
)  # fmt: skip


@dataclass(frozen=True)
class Tariff:
    """One line of the tariff, with the rate of each year in euro (None: the year did not have the line)."""

    code: str
    section: str
    description: str
    unit: str
    rate_2024: float | None
    rate_2025: float | None


TARIFFS: tuple[Tariff, ...] = (
    Tariff("PD-TNK", "Port dues", "Tankers, all grades", "GT", 0.412, 0.431),
    Tariff("PD-DRY", "Port dues", "Dry bulk and general cargo ships", "GT", 0.318, 0.331),
    Tariff("PD-CON", "Port dues", "Container ships", "GT", 0.295, 0.306),
    Tariff("PD-ROR", "Port dues", "Ro-ro ships, scheduled or not", "GT", 0.274, 0.285),
    Tariff("PD-CRU", "Port dues", "Cruise ships", "GT", 0.297, 0.312),
    Tariff("PD-OFF", "Port dues", "Offshore, wind farm and heavy lift ships", "GT", 0.305, 0.314),
    Tariff("PD-FSH", "Port dues", "Fishing vessels, each call", "m LOA", 1.85, 1.90),
    Tariff("BER-M", "Berth dues", "After the first 24 hours, each started 24 hours", "m LOA", 2.10, 2.20),
    Tariff(
        "BER-LAY",
        "Berth dues",
        "Lay-by berth, from the first hour, each started 24 hours",
        "m LOA",
        1.45,
        1.50,
    ),
    Tariff("PIL-BASE", "Pilotage", "Basic charge, each movement", "movement", 285.00, 297.00),
    Tariff("PIL-GT", "Pilotage", "Size charge, each movement", "GT", 0.052, 0.054),
    Tariff(
        "PIL-WAIT",
        "Pilotage",
        "Pilot kept waiting, each started half hour after the first",
        "half hour",
        64.00,
        68.00,
    ),
    Tariff("PIL-CAN", "Pilotage", "Order cancelled less than 2 hours before boarding", "order", 190.00, 210.00),
    Tariff("TUG-50", "Towage", "Tug of 50 t bollard pull, each job", "tug job", 1480.00, 1525.00),
    Tariff("TUG-18", "Towage", "Harbour tug of 18 t bollard pull, each job", "tug job", 690.00, 715.00),
    Tariff("MOR-OP", "Mooring", "Mooring or unmooring gang of four", "operation", 410.00, 428.00),
    Tariff("MOR-SML", "Mooring", "Gang of two, ships under 90 m", "operation", 235.00, 245.00),
    Tariff("LOCK", "Lock", "Passage of the Old Basin lock, each way", "m LOA", 3.15, 3.25),
    Tariff("WST-GT", "Waste", "Indirect waste fee, each call", "GT", 0.036, 0.039),
    Tariff("WST-MIN", "Waste", "Indirect waste fee, minimum", "call", 95.00, 110.00),
    Tariff("WST-EXT", "Waste", "Sludge above the included 5 m3", "m3", 142.00, 149.00),
    Tariff("SEC", "Security", "ISPS charge, each call", "call", 78.00, 81.00),
    Tariff("SHP-CON", "Shore power", "Connection and disconnection", "call", 320.00, 320.00),
    Tariff("SHP-KWH", "Shore power", "Energy", "kWh", 0.29, 0.27),
    Tariff("FWT-T", "Supplies", "Fresh water from the quay", "t", 3.40, 3.55),
    Tariff("CRN-H", "Cranes", "Mobile crane 4 with driver", "hour", 365.00, 378.00),
    Tariff("CRN-LINK", "Cranes", "Linkspan operator outside timetable", "hour", 96.00, 99.00),
    Tariff("STO-O", "Storage", "Open storage after 10 free days", "m2 day", 0.11, 0.12),
    Tariff("STO-C", "Storage", "Shed storage after 7 free days", "m2 day", 0.24, 0.25),
    Tariff("ENV-SCR", "Environment", "Open-loop scrubber in use in the port area", "call", None, 2500.00),
)


@dataclass(frozen=True)
class NamedShip:
    """A ship the prose speaks of; everything else about the fleet is drawn at random."""

    name: str
    kind: str
    flag: str
    built: int
    loa_m: float
    beam_m: float
    draught_m: float
    gt: int
    dwt: int
    stem: int  # the six digits before the check digit of its (made up) IMO number


NAMED_SHIPS: tuple[NamedShip, ...] = (
    NamedShip("Maren Kirstine", "general", "Denmark", 2009, 118.4, 17.2, 6.9, 5164, 7420, 271483),
    NamedShip("Maren Christine", "general", "Netherlands", 2011, 111.6, 15.9, 6.6, 4418, 6350, 271928),
    NamedShip("Baltic Harrier", "general", "Finland", 2006, 138.0, 21.0, 7.9, 8970, 11240, 264207),
    NamedShip("Ocean Thistle", "tanker", "Malta", 2013, 146.2, 22.6, 8.6, 11620, 16800, 281156),
    NamedShip("Norse Pioneer", "bulk", "Norway", 2010, 178.6, 28.4, 8.8, 19880, 29300, 273340),
    NamedShip("Elbe Trader", "bulk", "Germany", 2004, 151.3, 22.8, 7.9, 10940, 15650, 258815),
    NamedShip("Polar Meridian", "cruise", "Bahamas", 2018, 201.0, 27.6, 6.8, 34200, 4100, 296671),
    NamedShip("Boreas Lifter", "heavy", "Netherlands", 2015, 168.5, 25.4, 8.1, 17310, 18900, 287752),
    NamedShip("Sint Annaland", "roro", "Netherlands", 2007, 186.4, 25.2, 6.7, 21450, 8800, 266094),
    NamedShip("Ravens Link", "roro", "Denmark", 1999, 149.8, 22.0, 5.9, 12880, 5600, 243319),
)


@dataclass(frozen=True)
class NamedCall:
    """A call the prose speaks of: fixed ship, berth and times."""

    ship: str
    berth: str
    eta: datetime
    ata: datetime
    atd: datetime
    purpose: str
    draught_in: float
    draught_out: float
    pilot: str


def _at(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M")


NAMED_CALLS: tuple[NamedCall, ...] = (
    NamedCall("Baltic Harrier", "S3", _at("2023-11-08 20:00"), _at("2023-11-08 21:35"),
              _at("2023-11-11 13:10"), "discharge", 7.4, 5.6, "P02"),
    NamedCall("Maren Kirstine", "N3", _at("2024-04-22 05:00"), _at("2024-04-22 05:40"),
              _at("2024-04-23 14:20"), "load", 5.3, 6.7, "P13"),
    NamedCall("Maren Christine", "N4", _at("2024-04-22 11:00"), _at("2024-04-22 11:25"),
              _at("2024-04-24 09:15"), "discharge", 6.3, 4.9, "P15"),
    NamedCall("Norse Pioneer", "N2", _at("2024-05-17 06:00"), _at("2024-05-17 06:10"),
              _at("2024-05-19 18:40"), "discharge", 8.7, 6.1, "P05"),
    NamedCall("Elbe Trader", "N1", _at("2024-05-17 07:00"), _at("2024-05-17 16:45"),
              _at("2024-05-19 20:05"), "discharge", 7.8, 5.5, "P08"),
    NamedCall("Polar Meridian", "C1", _at("2024-07-14 07:00"), _at("2024-07-14 07:05"),
              _at("2024-07-14 21:50"), "passengers", 6.7, 6.7, "P01"),
    NamedCall("Ocean Thistle", "T1", _at("2024-08-02 22:00"), _at("2024-08-02 22:50"),
              _at("2024-08-04 03:30"), "discharge", 8.5, 6.4, "P04"),
    NamedCall("Boreas Lifter", "W1", _at("2024-09-19 05:00"), _at("2024-09-19 06:30"),
              _at("2024-09-23 11:15"), "load", 6.4, 7.9, "P10"),
)  # fmt: skip

# Berth, first and last moment of a closure that the notices announce; no ship lies there or moves then.
CLOSURES: tuple[tuple[str, datetime, datetime], ...] = (
    ("N4", _at("2024-09-02 06:00"), _at("2024-10-11 18:00")),
    *((berth, _at("2024-11-04 06:00"), _at("2024-11-15 18:00")) for berth in ("B1", "B2", "B3", "B4")),
    ("R2", _at("2023-02-06 00:00"), _at("2023-02-24 12:00")),
)

# Operator company of each named ship and the agent that looks after it here (names stand in `customers`).
NAMED_OPERATORS: dict[str, str] = {
    "Maren Kirstine": "Rederiet Kirstine Holm A/S",
    "Maren Christine": "Vandermeer Shipping BV",
    "Baltic Harrier": "Saimaa Line Oy",
    "Ocean Thistle": "Thistle Tankers Ltd",
    "Norse Pioneer": "Hardanger Bulk AS",
    "Elbe Trader": "Vandermeer Shipping BV",
    "Polar Meridian": "Meridian Voyages Ltd",
    "Boreas Lifter": "Boreas Heavy Transport BV",
    "Sint Annaland": "Zeeuwse Ro-Ro Maatschappij BV",
    "Ravens Link": "Kattegat & Aske Linie A/S",
}
