"""The incident register: three numbered reports that the prose tells in full, and small ones."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from random import Random

Row = dict[str, object]
Told = tuple[str, datetime, str, str, str, int, str, str]

# category: (severity weights for 1 to 5, descriptions)
_KINDS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "contact": (
        (4, 6, 2, 0, 0),
        (
            "Heavy landing; fender panel scuffed, no damage to the ship",
            "Bulbous bow touched the quay wall while swinging; paint only",
            "Stern line handled late, quarter touched the ladder recess",
            "Ship's side caught a raised fender chain; two links parted",
        ),
    ),
    "mooring": (
        (5, 6, 2, 1, 0),
        (
            "Spring line parted during cargo work; nobody in the snap-back zone",
            "Ship ranged 3 m along the quay in swell; lines doubled up",
            "Heaving line weight found to be metal; master told to replace it",
            "Crew left lines on one winch drum with the brake off",
        ),
    ),
    "pollution": (
        (5, 5, 2, 0, 0),
        (
            "Hydraulic oil, less than 5 litres, from deck crane; boomed and recovered",
            "Sheen seen at the stern, source not found, gone by next tide",
            "Grain dust blown over the road; grab work stopped until the wind eased",
            "Paint flakes in the water from hull scraping without a permit",
        ),
    ),
    "injury": (
        (5, 5, 3, 1, 0),
        (
            "Slip on wet gangway; bruised knee, first aid given",
            "Finger pinched between shackle and bollard; sent to clinic",
            "Stevedore struck on the hard hat by falling dunnage; returned to work",
            "Twisted ankle stepping off the pilot boat",
        ),
    ),
    "near miss": (
        (8, 3, 0, 0, 0),
        (
            "Fishing vessel crossed ahead of a ship in the Narrows without calling VTS",
            "Forklift reversed towards a pedestrian at shed 9",
            "Pilot ladder rigged 1 m too high; corrected before boarding",
            "Leisure craft anchored in the swinging circle",
            "Hot work seen on deck without the permit on display",
        ),
    ),
    "equipment": (
        (6, 4, 1, 0, 0),
        (
            "Linkspan hydraulic alarm; lowered by hand pump",
            "Crane 4 slew brake overheated; half an hour lost",
            "Lock gate limit switch failed; passage finished on manual",
            "VTS radar 2 lost picture for 20 minutes",
            "Quay light column 14 dark",
        ),
    ),
}

# The reports of the prose: number, moment, ship, berth, category, severity, description, reporter.
_TOLD: tuple[Told, ...] = (
    (
        "INC-2023-118",
        datetime(2023, 11, 9, 17, 20),
        "Baltic Harrier",
        "S3",
        "mooring",
        3,
        "Both stern lines parted in a gust of 52 knots, bollard S3-11 pulled out; held by tug Aske Guard",
        "Marion Stokes",
    ),
    (
        "INC-2024-031",
        datetime(2024, 4, 22, 5, 28),
        "Maren Kirstine",
        "N3",
        "contact",
        2,
        "Contact with fender 14 while berthing; fender panel torn off, scratch of 2.3 m on the ship's bow",
        "Torben Krag",
    ),
    (
        "INC-2024-064",
        datetime(2024, 8, 3, 3, 40),
        "Ocean Thistle",
        "T1",
        "pollution",
        3,
        "About 40 litres of gas oil from the flange of loading arm 2; 35 litres stayed in the drip tray",
        "Tanker Jetty operator",
    ),
)
_YEARS = {2022: 141, 2023: 136, 2024: 103}


def make_incidents(random: Random, calls: list[Row], vessels: list[Row]) -> list[Row]:
    """Numbered by year in order of time; about a third belong to no call."""
    ship_imo = {str(row["name"]): row["imo"] for row in vessels}
    call_of = {(row["vessel_imo"], str(row["ata"])[:7]): row["id"] for row in calls}
    rows: list[Row] = []
    for year, total in _YEARS.items():
        told = [report for report in _TOLD if report[1].year == year]
        for moment, report in _moments(random, year, total, told):
            number = f"INC-{year}-{sum(1 for row in rows if str(row['id']).startswith(f'INC-{year}')) + 1:03d}"
            if report is None:
                rows.append({"id": number} | _small(random, moment, calls))
                continue
            assert number == report[0]
            _, when, ship, berth, category, severity, text, reporter = report
            imo = ship_imo[ship]
            rows.append(
                {
                    "id": number,
                    "occurred_at": when,
                    "call_id": call_of[(imo, str(when)[:7])],
                    "vessel_imo": imo,
                    "berth_id": berth,
                    "category": category,
                    "severity": severity,
                    "description": text,
                    "reported_by": reporter,
                }
            )
    return rows


def _moments(random: Random, year: int, total: int, told: list[Told]) -> list[tuple[datetime, Told | None]]:
    """`total` moments of a year so that each told report gets exactly its number."""
    start, end = datetime(year, 1, 1), datetime(year, 12, 31, 22)
    stops = (
        [(start, 0, None)] + [(report[1], int(report[0][-3:]), report) for report in told] + [(end, total + 1, None)]
    )
    found: list[tuple[datetime, Told | None]] = []
    for (left, before, report), (right, after, _) in pairwise(stops):
        if report is not None:
            found.append((left, report))
        minutes = int((right - left).total_seconds() // 60)
        draws = sorted(random.sample(range(10, minutes - 10), after - before - 1))
        found += [(left + timedelta(minutes=draw), None) for draw in draws]
    return found


def _small(random: Random, moment: datetime, calls: list[Row]) -> Row:
    category = random.choice(list(_KINDS))
    weights, texts = _KINDS[category]
    present = [call for call in calls if _covers(call, moment)]
    call = random.choice(present) if present and random.random() < 0.68 else None
    return {
        "occurred_at": moment.replace(minute=moment.minute - moment.minute % 5),
        "call_id": call["id"] if call else None,
        "vessel_imo": call["vessel_imo"] if call else None,
        "berth_id": call["berth_id"] if call else None,
        "category": category,
        "severity": random.choices(range(1, 6), weights=weights)[0],
        "description": random.choice(texts),
        "reported_by": random.choice(
            ("VTS duty officer", "Pilot", "Master", "Mooring foreman", "Stevedore", "Gate officer", "Agent")
        ),
    }


def _covers(call: Row, moment: datetime) -> bool:
    arrived, left = call["ata"], call["atd"]
    assert isinstance(arrived, datetime) and isinstance(left, datetime)
    return arrived <= moment <= left
