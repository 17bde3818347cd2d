"""Ships, pilots, calls and cargo: three years of traffic in which no two ships share a berth or an hour.

The written rules of the port hold in the rows: berth limits, pilot class limits, tug numbers, closures.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random

from harbour_maker import names
from harbour_maker.world import (
    BERTHS,
    CLOSURES,
    FIRST_DAY,
    LAST_DAY,
    NAMED_CALLS,
    NAMED_OPERATORS,
    NAMED_SHIPS,
    Berth,
)

Row = dict[str, object]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CALLSIGN_PREFIX = {
    "Netherlands": "PB",
    "Germany": "DJ",
    "Denmark": "OX",
    "Norway": "LA",
    "Cyprus": "5B",
    "Malta": "9H",
    "Liberia": "D5",
    "Antigua and Barbuda": "V2",
    "Finland": "OJ",
    "Sweden": "SB",
    "United Kingdom": "MB",
    "Portugal": "CQ",
    "Gibraltar": "ZD",
    "Poland": "SN",
    "Spain": "EA",
    "France": "FH",
    "Bahamas": "C6",
    "Bermuda": "ZC",
}


def imo_number(stem: int) -> int:
    """`stem` with the check digit of an IMO number: last digit of the sum of digits weighted 7 to 2."""
    digits = [int(digit) for digit in f"{stem:06d}"]
    return stem * 10 + sum(digit * weight for digit, weight in zip(digits, range(7, 1, -1), strict=True)) % 10


def make_vessels(random: Random, operators: dict[str, list[Row]], by_name: dict[str, int]) -> list[Row]:
    """The fleet, sorted by IMO number; `operators` gives customer rows by ship kind, `by_name` their ids."""
    stems = random.sample([stem for stem in range(240000, 299999) if _unnamed(stem)], 600)
    fleet = [
        _vessel(
            ship.name,
            ship.kind,
            ship.flag,
            ship.built,
            imo_number(ship.stem),
            by_name[NAMED_OPERATORS[ship.name]],
        )
        | {
            "loa_m": ship.loa_m,
            "beam_m": ship.beam_m,
            "draught_m": ship.draught_m,
            "gt": ship.gt,
            "dwt": ship.dwt,
        }
        for ship in NAMED_SHIPS
    ]
    taken = {ship.name for ship in NAMED_SHIPS}
    for kind, shape in names.SHIP_SHAPES.items():
        pool = [name for name in names.SHIP_NAMES[kind] if name not in taken]
        for name in sorted(random.sample(pool, min(shape[0], len(pool)))):
            flag = random.choice(names.FLAGS.get(kind, names.OTHER_FLAGS))
            operator = random.choice(operators["fishing" if kind == "fishing" else "cargo"])
            vessel = _vessel(
                name,
                kind,
                flag,
                random.randint(1988, 2022),
                imo_number(stems.pop()),
                int(str(operator["id"])),
            )
            fleet.append(vessel | _size(random, kind))
    _give_callsigns(random, fleet)
    return sorted(fleet, key=lambda row: int(str(row["imo"])))


def _give_callsigns(random: Random, fleet: list[Row]) -> None:
    given: set[str] = set()
    for vessel in fleet:
        prefix, callsign = _CALLSIGN_PREFIX[str(vessel["flag"])], ""
        while not callsign or callsign in given:
            callsign = prefix + "".join(random.choices(_LETTERS, k=2)) + str(random.randint(2, 9))
        given.add(callsign)
        vessel["callsign"] = callsign


def _unnamed(stem: int) -> bool:
    return all(stem != ship.stem for ship in NAMED_SHIPS)


def _vessel(name: str, kind: str, flag: str, built: int, imo: int, operator: int) -> Row:
    return {
        "imo": imo,
        "name": name,
        "kind": kind,
        "flag": flag,
        "built": built,
        "callsign": None,
        "operator_id": operator,
    }


def _size(random: Random, kind: str) -> Row:
    _, (short, long), beam, draught, tonnage, deadweight = names.SHIP_SHAPES[kind]
    loa = round(random.uniform(short, long), 1)
    gt = round(tonnage * loa * loa * random.uniform(0.9, 1.1))
    return {
        "loa_m": loa,
        "beam_m": round(loa * beam * random.uniform(0.96, 1.04), 1),
        "draught_m": round(loa * draught * random.uniform(0.94, 1.05), 1),
        "gt": gt,
        "dwt": round(gt * deadweight * random.uniform(0.93, 1.07)),
    }


def make_pilots(random: Random) -> list[Row]:
    """Eighteen pilots; class 1 has no limit, class 2 goes to 150 m, class 3 to 110 m."""
    crew = (
        ("P01", "Ruben Aas", 1, "1999-03-01"),
        ("P02", "Marion Stokes", 1, "2001-09-15"),
        ("P03", "Jelle Hofstra", 1, "2004-05-03"),
        ("P04", "Callum Rennie", 1, "2006-02-20"),
        ("P05", "Birgit Thomsen", 1, "2008-10-06"),
        ("P06", "Alasdair Munro", 1, "2009-04-14"),
        ("P07", "Sofia Lindqvist", 1, "2011-08-22"),
        ("P08", "Hendrik Mulder", 1, "2012-01-09"),
        ("P09", "Owen Prosser", 1, "2013-06-17"),
        ("P10", "Katarzyna Wrona", 1, "2014-11-03"),
        ("P11", "Dirk van Essen", 2, "2016-03-29"),
        ("P12", "Niamh Corrigan", 2, "2017-09-11"),
        ("P13", "Torben Krag", 2, "2018-05-22"),
        ("P14", "Isla Fraser", 2, "2019-02-04"),
        ("P15", "Mats Ekholm", 2, "2020-10-19"),
        ("P16", "Yvonne Pauwels", 3, "2022-04-25"),
        ("P17", "Gavin Ridley", 3, "2023-03-13"),
        ("P18", "Ana Ferreira", 3, "2024-02-05"),
    )
    limits = {1: 999.0, 2: 150.0, 3: 110.0}
    return [
        {
            "id": id,
            "name": name,
            "licence_class": licence,
            "max_loa_m": limits[licence],
            "licensed_since": date.fromisoformat(since),
            "medical_due": date(2025, random.randint(1, 12), random.randint(1, 28)),
        }
        for id, name, licence, since in crew
    ]


def berth_rows() -> list[Row]:
    """`data/berths.csv`: the hand-written berths without the two columns that only steer the traffic."""
    fields = (
        "id",
        "name",
        "quay",
        "length_m",
        "depth_cd_m",
        "max_loa_m",
        "max_draught_m",
        "max_swl_t",
        "shore_power_kw",
        "working_hours",
        "remarks",
    )
    return [{field: getattr(berth, field) for field in fields} for berth in BERTHS]


@dataclass
class _Visit:
    ship: Row
    berth: Berth
    eta: datetime
    ata: datetime
    atd: datetime
    purpose: str
    draught_in: float
    draught_out: float
    pilot: str | None = None


_STAY_HOURS = {
    "general": (14, 48),
    "coaster": (12, 44),
    "bulk": (20, 72),
    "container": (8, 26),
    "tanker": (14, 36),
    "chemical": (10, 30),
    "roro": (5, 11),
    "cruise": (9, 16),
    "heavy": (40, 120),
    "offshore": (6, 30),
    "fishing": (5, 26),
}
_PURPOSES = {
    "roro": ("both",),
    "cruise": ("passengers",),
    "fishing": ("landing",),
    "offshore": ("load", "supplies", "crew change"),
    "heavy": ("load", "discharge"),
}


def make_calls(random: Random, vessels: list[Row], pilots: list[Row], agents: list[Row]) -> list[Row]:
    """All calls in order of arrival, with pilot, tugs and agent."""
    visits = sorted(_visits(random, vessels), key=lambda visit: (visit.ata, visit.berth.id))
    local = [12 if agent["city"] == "Ravensholm" else 1 for agent in agents]
    agent_of = {vessel["imo"]: random.choices(agents, weights=local)[0]["id"] for vessel in vessels}
    counters: dict[int, int] = {}
    rows: list[Row] = []
    for visit in visits:
        year = visit.ata.year
        counters[year] = counters.get(year, 0) + 1
        loa = float(str(visit.ship["loa_m"]))
        rows.append(
            {
                "id": f"C{year}-{counters[year]:05d}",
                "vessel_imo": visit.ship["imo"],
                "berth_id": visit.berth.id,
                "agent_id": agent_of[visit.ship["imo"]],
                "pilot_id": visit.pilot or _pilot(random, visit, loa, pilots),
                "eta": visit.eta,
                "ata": visit.ata,
                "atd": visit.atd,
                "draught_in_m": visit.draught_in,
                "draught_out_m": visit.draught_out,
                "tugs": tugs_required(visit.berth.id, str(visit.ship["kind"]), loa),
                "purpose": visit.purpose,
                "last_port": random.choice(names.PORTS),
                "next_port": random.choice(names.PORTS),
            }
        )
    return rows


def tugs_required(berth: str, kind: str, loa: float) -> int:
    """Tugs on arrival, as the towage guidelines say."""
    if kind in ("roro", "cruise", "offshore", "fishing"):
        return 0
    if berth == "T1":
        return 2 if loa > 120 else 1
    if berth == "T2":
        return 1
    if berth == "N3":
        return 2 if loa > 165 else int(loa > 120)
    if berth == "N2":
        return int(loa > 140)
    if berth == "W1":
        return 2 if loa > 150 else 1
    return int(loa > 120)


def _pilot(random: Random, visit: _Visit, loa: float, pilots: list[Row]) -> object:
    # Regular ferries sail under exemption certificates, and small ships need no pilot.
    if loa < 80 or visit.ship["kind"] == "roro":
        return None
    day = visit.ata.date()
    able = [pilot for pilot in pilots if _may_bring(pilot, loa, day)]
    return random.choice(able)["id"]


def _may_bring(pilot: Row, loa: float, day: date) -> bool:
    limit, since = pilot["max_loa_m"], pilot["licensed_since"]
    assert isinstance(limit, float) and isinstance(since, date)
    return limit >= loa and since <= day


def _visits(random: Random, vessels: list[Row]) -> list[_Visit]:
    by_name = {row["name"]: row for row in vessels}
    fitting = {berth.id: [ship for ship in vessels if _fits(ship, berth)] for berth in BERTHS}
    visits = [
        _Visit(
            by_name[c.ship],
            _berth(c.berth),
            c.eta,
            c.ata,
            c.atd,
            c.purpose,
            c.draught_in,
            c.draught_out,
            c.pilot,
        )
        for c in NAMED_CALLS
    ]
    reserved = [(v.berth.id, v.ata, v.atd) for v in visits] + list(CLOSURES)
    shadow = timedelta(days=4)
    away = [(v.ship["imo"], v.ata - shadow, v.atd + shadow) for v in visits]
    queue = [(FIRST_DAY + timedelta(hours=random.uniform(0, 90)), berth.id) for berth in BERTHS]
    heapq.heapify(queue)
    free_from: dict[object, datetime] = {}
    while queue:
        when, berth_id = heapq.heappop(queue)
        if when > LAST_DAY - timedelta(days=6):
            continue
        berth = _berth(berth_id)
        able = [
            ship
            for ship in fitting[berth_id]
            if free_from.get(ship["imo"], FIRST_DAY) <= when
            and not any(ship["imo"] == imo and start <= when <= end for imo, start, end in away)
        ]
        if not able:
            heapq.heappush(queue, (when + timedelta(hours=6), berth_id))
            continue
        visit = _visit(random, random.choice(able), berth, when)
        clash = [
            end
            for id, start, end in reserved
            if id == berth_id and visit.ata - timedelta(hours=2) < end and visit.atd + timedelta(hours=2) > start
        ]
        if clash:
            heapq.heappush(queue, (max(clash) + timedelta(hours=random.uniform(3, 20)), berth_id))
            continue
        visits.append(visit)
        free_from[visit.ship["imo"]] = visit.atd + timedelta(hours=60 if visit.ship["kind"] != "roro" else 12)
        stay = (visit.atd - visit.ata).total_seconds() / 3600
        idle = 2.5 + random.expovariate(1.0) * stay * (1 - berth.busy) / berth.busy
        heapq.heappush(queue, (visit.atd + timedelta(hours=idle), berth_id))
    return visits


def _berth(berth_id: str) -> Berth:
    return next(berth for berth in BERTHS if berth.id == berth_id)


def _fits(ship: Row, berth: Berth) -> bool:
    return ship["kind"] in berth.trades and float(str(ship["loa_m"])) <= berth.max_loa_m


def _five(moment: datetime) -> datetime:
    return moment.replace(minute=moment.minute - moment.minute % 5, second=0, microsecond=0)


def _visit(random: Random, ship: Row, berth: Berth, when: datetime) -> _Visit:
    kind = str(ship["kind"])
    low, high = _STAY_HOURS[kind]
    ata = _five(when)
    atd = _five(ata + timedelta(hours=random.uniform(low, high)))
    eta = _five(ata - timedelta(minutes=random.choice((-25, -10, 0, 0, 5, 15, 20, 40, 60, 95, 150, 260))))
    purpose = random.choice(_PURPOSES.get(kind, ("load", "discharge", "discharge", "both")))
    if berth.id == "L1":
        purpose = random.choice(("lay-by", "lay-by", "repairs", "bunkers"))
    deepest = min(float(str(ship["draught_m"])), berth.max_draught_m)
    deep, light = round(deepest * random.uniform(0.9, 1.0), 1), round(deepest * random.uniform(0.64, 0.82), 1)
    inward, outward = {"load": (light, deep), "discharge": (deep, light)}.get(purpose, (deep, deep))
    return _Visit(ship, berth, eta, ata, atd, purpose, inward, outward)


_GOODS: dict[str, tuple[tuple[str, str, str | None, str | None], ...]] = {
    # commodity, packing, UN number, IMDG class
    "general": (
        ("Sawn timber", "packages", None, None),
        ("Steel coils", "units", None, None),
        ("Wood pulp", "bales", None, None),
        ("Fertiliser in bags", "big bags", None, None),
        ("Ammonium nitrate fertiliser", "big bags", "2067", "5.1"),
        ("Paper reels", "units", None, None),
        ("Project cargo", "pieces", None, None),
    ),
    "coaster": (
        ("Barley", "bulk", None, None),
        ("Animal feed", "bulk", None, None),
        ("Bagged cement", "pallets", None, None),
        ("Seed potatoes", "pallets", None, None),
        ("Calcium carbide", "drums", "1402", "4.3"),
    ),
    "bulk": (
        ("Sea-dredged gravel", "bulk", None, None),
        ("Road salt", "bulk", None, None),
        ("Wheat", "bulk", None, None),
        ("Wood chips", "bulk", None, None),
        ("Crushed granite", "bulk", None, None),
        ("Soya meal", "bulk", None, None),
    ),
    "container": (
        ("Containers, laden", "TEU", None, None),
        ("Containers, empty", "TEU", None, None),
        ("Containers with paint", "TEU", "1263", "3"),
        ("Containers with batteries", "TEU", "3480", "9"),
    ),
    "tanker": (
        ("Gas oil", "liquid bulk", "1202", "3"),
        ("Naphtha", "liquid bulk", "1268", "3"),
        ("Heavy fuel oil", "liquid bulk", None, None),
        ("Jet fuel", "liquid bulk", "1863", "3"),
    ),
    "chemical": (
        ("Rapeseed oil", "liquid bulk", None, None),
        ("Methanol", "liquid bulk", "1230", "3"),
        ("Caustic soda solution", "liquid bulk", "1824", "8"),
        ("Acetic acid", "liquid bulk", "2789", "8"),
        ("Palm stearin", "liquid bulk", None, None),
    ),
    "roro": (
        ("Trailers", "units", None, None),
        ("New cars", "units", None, None),
        ("Trailers with gas cylinders", "units", "1950", "2.1"),
    ),
    "heavy": (
        ("Nacelles", "pieces", None, None),
        ("Tower sections", "pieces", None, None),
        ("Rotor blades", "pieces", None, None),
        ("Monopile transition pieces", "pieces", None, None),
    ),
    "offshore": (("Drilling stores", "baskets", None, None), ("Cable drums", "pieces", None, None)),
    "fishing": (
        ("Herring", "boxes", None, None),
        ("Plaice", "boxes", None, None),
        ("Brown shrimp", "crates", None, None),
        ("Mackerel", "boxes", None, None),
    ),
}
_FILL = {
    "general": 0.55,
    "coaster": 0.7,
    "bulk": 0.7,
    "container": 0.45,
    "tanker": 0.6,
    "chemical": 0.55,
    "roro": 0.35,
    "heavy": 0.12,
    "offshore": 0.12,
    "fishing": 0.3,
}


# Parcels that the prose speaks of: commodity, packing, UN number, IMDG class, units, tonnes.
_NAMED_PARCELS: dict[tuple[str, str], tuple[str, str, str | None, str | None, int | None, float]] = {
    ("Baltic Harrier", "2023-11-08"): ("Project cargo", "pieces", None, None, 6, 1210.0),
    ("Maren Kirstine", "2024-04-22"): ("Sawn timber", "packages", None, None, 2180, 4905.0),
    ("Maren Christine", "2024-04-22"): ("Steel coils", "units", None, None, 208, 3120.0),
    ("Norse Pioneer", "2024-05-17"): ("Road salt", "bulk", None, None, None, 18640.0),
    ("Elbe Trader", "2024-05-17"): ("Sea-dredged gravel", "bulk", None, None, None, 9310.0),
    ("Ocean Thistle", "2024-08-02"): ("Gas oil", "liquid bulk", "1202", "3", None, 11240.0),
    ("Boreas Lifter", "2024-09-19"): ("Nacelles", "pieces", None, None, 12, 1104.0),
}


def make_cargo(random: Random, calls: list[Row], vessels: list[Row]) -> list[Row]:
    """One to three parcels for each call that handled cargo."""
    ship_of = {row["imo"]: row for row in vessels}
    rows: list[Row] = []
    for call in calls:
        ship = ship_of[call["vessel_imo"]]
        goods = _GOODS.get(str(ship["kind"]))
        if goods is None or call["purpose"] in ("lay-by", "repairs", "bunkers", "supplies", "crew change"):
            continue
        for parcel in _parcels(random, call, ship, goods):
            rows.append({"id": len(rows) + 1, "call_id": call["id"]} | parcel)
    return rows


def _parcels(
    random: Random, call: Row, ship: Row, goods: tuple[tuple[str, str, str | None, str | None], ...]
) -> list[Row]:
    named = _NAMED_PARCELS.get((str(ship["name"]), str(call["ata"])[:10]))
    direction = {"load": "export", "both": random.choice(("import", "export"))}.get(str(call["purpose"]), "import")
    if named:
        name, packing, un, imdg, units, tonnes = named
        return [_parcel(name, direction, tonnes, units, packing, un, imdg)]
    count = random.choice((1, 1, 1, 2, 2, 3)) if len(goods) > 2 else 1
    total = float(str(ship["dwt"])) * _FILL[str(ship["kind"])] * random.uniform(0.5, 1.15)
    ordinary = [good for good in goods if good[3] is None or random.random() < 0.4] or [goods[0]]
    parcels = []
    for name, packing, un, imdg in random.sample(ordinary, min(count, len(ordinary))):
        tonnes = round(total / count * random.uniform(0.7, 1.25), 1)
        units = None if "bulk" in packing else max(1, round(tonnes / random.uniform(1.1, 14.0)))
        parcels.append(_parcel(name, direction, tonnes, units, packing, un, imdg))
    return parcels


def _parcel(
    name: str,
    direction: str,
    tonnes: float,
    units: int | None,
    packing: str,
    un: str | None,
    imdg: str | None,
) -> Row:
    return {
        "commodity": name,
        "direction": direction,
        "tonnes": tonnes,
        "units": units,
        "packing": packing,
        "un_number": un,
        "imdg_class": imdg,
    }
