"""The port itself as tables: soundings, bollards, drawings, staff, incidents, tides and the gauge's log."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from harbour_maker import names
from harbour_maker.world import BERTHS

Row = dict[str, object]
TIDE_SERVICE = Path("IT", "tide_service", "tide_service.py")


def load_tide_service(folder: Path) -> dict[str, Any]:
    """The names of the script that lies in the shared drive itself: the tide table is what it prints."""
    # run_path leaves no __pycache__ in the lifted folder, which an import would
    return runpy.run_path(str(folder / TIDE_SERVICE))


def make_tides(service: dict[str, Any], year: int) -> list[Row]:
    """High and low waters of a year."""
    return [
        {
            "date": moment.date(),
            "time_utc": moment.strftime("%H:%M"),
            "event": event,
            "height_m": round(metres, 2),
        }
        for moment, metres, event in service["turning_points"](datetime(year, 1, 1), datetime(year + 1, 1, 1))
    ]


OUTAGE = (datetime(2024, 10, 16, 2, 10), datetime(2024, 10, 16, 9, 40))
_SURGE_PEAK = datetime(2024, 10, 14, 5, 0)


def make_gauge_log(random: Random, height: Callable[[datetime], float]) -> list[Row]:
    """Ten-minute readings of the Signal Tower gauge, 10 to 23 October 2024, silent during the outage."""
    rows: list[Row] = []
    moment, drift = datetime(2024, 10, 10), 0.04
    while moment < datetime(2024, 10, 24):
        drift = 0.995 * drift + random.gauss(0, 0.006)
        hours = (moment - _SURGE_PEAK).total_seconds() / 3600
        level = height(moment) + drift + 0.78 * math.exp(-((hours / 8) ** 2)) + random.gauss(0, 0.008)
        spike = random.random() < 0.004
        if not OUTAGE[0] <= moment < OUTAGE[1]:
            rows.append(
                {
                    "ts": moment.isoformat(),
                    "station": "SIG",
                    "level_m": round(level + (random.choice((-1.4, 1.9)) if spike else 0.0), 3),
                    "quality": "spike" if spike else "good",
                    "battery_v": round(
                        13.1 + 0.5 * math.sin(moment.hour / 24 * 2 * math.pi - 1.6) + random.gauss(0, 0.03), 2
                    ),
                    "water_c": round(12.6 - 0.11 * (moment - datetime(2024, 10, 10)).days + random.gauss(0, 0.05), 1),
                }
            )
        moment += timedelta(minutes=10)
    return rows


def make_soundings(random: Random) -> list[Row]:
    """The multibeam survey of October 2023, thinned to a grid; the shoalest sounding is the declared depth.

    South Quay 4 is the exception that made the port reduce its draught: 6.7 m where 7.0 m is declared.
    """
    rows: list[Row] = []
    for number, berth in enumerate(BERTHS):
        day = date(2023, 10, 9) + timedelta(days=number // 2)
        spots = [(chainage, offset) for chainage in range(0, int(berth.length_m) + 1, 15) for offset in (2, 8, 15, 25)]
        shoalest = random.choice(spots)
        for chainage, offset in spots:
            depth = berth.depth_cd_m + 0.1 + random.expovariate(4.0) + 0.012 * offset
            if (chainage, offset) == shoalest and berth.id != "S4":
                depth = berth.depth_cd_m
            if berth.id == "S4" and 60 <= chainage <= 75 and offset <= 8:
                depth = 6.7 if (chainage, offset) == (75, 2) else 6.7 + random.uniform(0.1, 0.2)
            rows.append(
                {
                    "berth_id": berth.id,
                    "chainage_m": chainage,
                    "offset_m": offset,
                    "depth_cd_m": round(depth, 1),
                    "surveyed": day,
                }
            )
    return rows


_REMARKS = (
    "",
    "",
    "",
    "",
    "Paint flaking",
    "Grouting washed out on the seaward side",
    "Number plate missing",
    "Rope wear on the horn",
    "Anchor bolts renewed",
    "Light corrosion",
)


def make_bollards(random: Random) -> list[Row]:
    """The bollard survey of spring 2024; condition A (as new) to D (out of service)."""
    rows: list[Row] = []
    for berth in BERTHS:
        spacing = 15 if berth.length_m >= 120 else 12
        for number in range(1, int(berth.length_m // spacing) + 1):
            grade = random.choices("ABC", weights=(40, 48, 12))[0]
            rows.append(
                {
                    "bollard": f"{berth.id}-{number:02d}",
                    "berth_id": berth.id,
                    "position_m": round((number - 0.5) * spacing, 1),
                    "type": random.choice(("tee head", "single bitt", "kidney"))
                    if berth.max_swl_t >= 40
                    else "cast iron post",
                    "swl_t": berth.max_swl_t if grade != "C" else round(berth.max_swl_t * 0.75),
                    "installed": random.randint(1968, 2019),
                    "condition": grade,
                    "inspected": date(2024, 4, random.randint(2, 26)),
                    "remarks": random.choice(_REMARKS) if grade == "A" else random.choice(_REMARKS[3:]),
                }
            )
    by_id = {row["bollard"]: row for row in rows}
    by_id["N2-07"].update(
        condition="D",
        swl_t=0,
        type="tee head",
        installed=1974,
        remarks="Out of service: base cracked, do not use; replacement ordered (PO 24-0588)",
    )
    by_id["S3-11"].update(
        condition="A",
        swl_t=80,
        type="tee head",
        installed=2023,
        remarks="New in December 2023 after INC-2023-118",
    )
    return rows


_DRAWINGS = (
    "General arrangement",
    "Fender layout",
    "Bollard foundation details",
    "Quay wall section",
    "Service duct plan",
    "Drainage and interceptors",
    "Lighting columns",
    "Crane rail levels",
    "Cathodic protection layout",
    "Fire main",
    "Piling record",
    "Apron paving",
)


def make_drawings(random: Random) -> list[Row]:
    """The register of drawings, with the berth each belongs to."""
    rows: list[Row] = []
    for berth in BERTHS:
        for title in random.sample(_DRAWINGS, random.randint(4, 8)):
            rows.append(
                {
                    "drawing_no": f"RHA-{berth.id}-{len(rows) + 101}",
                    "title": f"{berth.name}: {title}",
                    "berth_id": berth.id,
                    "sheet": random.choice(("A0", "A1", "A1", "A3")),
                    "revision": random.choice("ABCDEFG"),
                    "date": date(random.randint(1971, 2024), random.randint(1, 12), random.randint(1, 28)),
                    "drawn_by": random.choice(("H. Dahl", "K. Mbeki", "R. Sutter", "contractor", "unknown (scan)")),
                    "format": random.choice(("DWG", "PDF scan", "TIFF", "DWG")),
                }
            )
    return rows


_NAMED_STAFF = (
    ("Ingrid Solheim", "Harbour Master", "Harbour Office", 201, "2012-08-01"),
    (
        "Piet Verhoeven",
        "Deputy Harbour Master (retired 31 December 2024)",
        "Harbour Office",
        202,
        "1996-05-06",
    ),
    ("Margaret Fenn", "Finance Director", "Finance", 210, "2015-02-02"),
    ("Luis Ortega", "Credit Controller", "Finance", 214, "2018-11-19"),
    ("Amara Okafor", "Safety Manager", "Safety", 220, "2017-04-03"),
    ("Lotte Brandsma", "Environment Officer", "Safety", 223, "2020-01-13"),
    ("Tomasz Wilk", "VTS Manager", "VTS", 230, "2011-03-21"),
    ("Ewan Birkett", "Lock Master", "Lock and Bridges", 241, "2003-06-30"),
    ("Henrik Dahl", "Chief Engineer", "Engineering", 250, "2008-09-15"),
    ("Kagiso Mbeki", "Civil Engineer", "Engineering", 252, "2019-08-12"),
    ("Ruth Sutter", "Crane and Plant Engineer", "Engineering", 255, "2014-05-26"),
    ("Sanjay Rao", "IT Manager", "IT", 260, "2016-10-10"),
    ("Freya Lindgren", "Systems Administrator", "IT", 262, "2021-02-01"),
    ("Joanna Price", "HR Manager", "HR", 270, "2013-01-07"),
    ("Ruben Aas", "Pilot Superintendent", "Pilotage", 280, "1999-03-01"),
    ("Marion Stokes", "Senior Pilot", "Pilotage", 281, "2001-09-15"),
)
_TEAMS = {
    "VTS": ("VTS Operator", 11),
    "Mooring": ("Mooring Gang", 14),
    "Lock and Bridges": ("Lock Keeper", 6),
    "Engineering": ("Fitter", 7),
    "Security": ("Gate Officer", 8),
    "Finance": ("Accounts Assistant", 4),
    "Pilotage": ("Pilot Boat Coxswain", 7),
    "Harbour Office": ("Clerk", 4),
}


def make_staff(random: Random, pilots: list[Row]) -> list[Row]:
    """The staff directory: the people of the prose, every pilot, and the teams around them."""
    people = list(_NAMED_STAFF)
    known = {person[0] for person in people}
    people += [
        (str(pilot["name"]), "Pilot", "Pilotage", 282, str(pilot["licensed_since"]))
        for pilot in pilots
        if str(pilot["name"]) not in known
    ]
    pool = [f"{given} {family}" for given in names.GIVEN for family in names.FAMILY]
    drawn = iter(random.sample(pool, 80))
    for team, (title, count) in _TEAMS.items():
        for _ in range(count):
            started = date(random.randint(2002, 2024), random.randint(1, 12), random.randint(1, 28))
            people.append((next(drawn), title, team, 300 + len(people), started.isoformat()))
    return [
        {
            "staff_no": 1001 + number,
            "name": name,
            "title": title,
            "department": team,
            "extension": extension,
            "email": f"{name.lower().replace(' ', '.')}@ravensholm-harbour.example",
            "started": date.fromisoformat(started),
        }
        for number, (name, title, team, extension, started) in enumerate(people)
    ]
