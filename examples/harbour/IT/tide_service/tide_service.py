"""Tide service of the Ravensholm Harbour Authority.

Predicts the height of tide at the Signal Tower gauge and writes the yearly table of high and low waters that
the VTS desk, the pilots and the public page read. Heights are metres above Chart Datum, times are UTC.

    python tide_service.py 2024 > tides_2024.csv

Constants come from the 2009 analysis of the Signal Tower record (report RHA-HYD-0912). No nodal corrections
are applied: the error is below 6 cm, which the bar allowance in the Port Operations Manual covers.

Owner: IT (Sanjay Rao). Harbour Master approves every change to the constants.
"""

import csv
import json
import math
import sqlite3
import sys
from datetime import datetime, timedelta
from pathlib import Path

EPOCH = datetime(2000, 1, 1)
MEAN_LEVEL = 2.95  # metres of mean sea level above Chart Datum

# constituent: (speed in degrees per hour, amplitude in metres, phase lag in degrees)
CONSTITUENTS = {
    "M2": (28.9841042, 1.62, 118.0),
    "S2": (30.0000000, 0.54, 162.0),
    "N2": (28.4397295, 0.31, 96.0),
    "K1": (15.0410686, 0.08, 12.0),
    "O1": (13.9430356, 0.09, 210.0),
    "M4": (57.9682084, 0.11, 205.0),
}


def height(moment):
    """Predicted height in metres above Chart Datum at a UTC moment."""
    hours = (moment - EPOCH).total_seconds() / 3600
    return MEAN_LEVEL + sum(
        amplitude * math.cos(math.radians(speed * hours - phase)) for speed, amplitude, phase in CONSTITUENTS.values()
    )


def turning_points(start, end):
    """Every high and low water in [start, end) as (moment, height, "HW" or "LW"), to the minute."""
    step = timedelta(minutes=6)
    before, here = height(start - step), height(start)
    moment = start
    while moment < end:
        after = height(moment + step)
        if (here - before) * (after - here) <= 0 and here != before:
            # vertex of the parabola through the three heights
            shift = 0.5 * (before - after) / (before - 2 * here + after)
            exact = moment + step * shift
            minute = exact.replace(second=0, microsecond=0) + timedelta(minutes=exact.second >= 30)
            yield minute, height(minute), "HW" if here > before else "LW"
        before, here = here, after
        moment += step


def write_year(year, stream):
    """The table of one year as CSV."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["date", "time_utc", "event", "height_m"])
    for moment, metres, event in turning_points(datetime(year, 1, 1), datetime(year + 1, 1, 1)):
        writer.writerow([moment.date().isoformat(), moment.strftime("%H:%M"), event, f"{metres:.2f}"])


def import_gauge_log(database, log):
    """Append the gauge's JSON lines; readings flagged `spike` or `stale` are kept but not served."""
    with sqlite3.connect(database) as connection, open(log, encoding="utf-8") as lines:
        for line in lines:
            reading = json.loads(line)
            connection.execute(
                "INSERT OR IGNORE INTO observation VALUES (?, ?, ?, ?)",
                (reading["station"], reading["ts"], reading["level_m"], reading["quality"]),
            )


def residual(database, station, moment):
    """Observed minus predicted level in metres; None without a good reading in the last 30 minutes.

    The VTS display shows the residual in amber from 0.40 m and in red from 0.75 m, either sign.
    """
    oldest = (moment - timedelta(minutes=30)).isoformat()
    with sqlite3.connect(database) as connection:
        row = connection.execute(
            "SELECT observed_at, level_m FROM observation WHERE station = ? AND quality = 'good' "
            "AND observed_at BETWEEN ? AND ? ORDER BY observed_at DESC LIMIT 1",
            (station, oldest, moment.isoformat()),
        ).fetchone()
    if row is None:
        return None
    return row[1] - height(datetime.fromisoformat(row[0]))


def main(arguments):
    if len(arguments) == 1 and arguments[0].isdigit():
        write_year(int(arguments[0]), sys.stdout)
    elif len(arguments) == 3 and arguments[0] == "import" and Path(arguments[2]).exists():
        import_gauge_log(arguments[1], arguments[2])
    else:
        sys.exit("usage: tide_service.py YEAR | tide_service.py import DATABASE LOG")


if __name__ == "__main__":
    main(sys.argv[1:])
