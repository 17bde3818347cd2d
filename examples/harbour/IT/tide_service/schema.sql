-- Database of the tide service (SQLite). One file on the VTS server: /srv/tide/tide.db
-- Rebuild with: sqlite3 tide.db < schema.sql

CREATE TABLE station (
    code        TEXT PRIMARY KEY,          -- 'SIG' Signal Tower, 'BAR' Outer Bar buoy
    name        TEXT NOT NULL,
    latitude    REAL NOT NULL,
    longitude   REAL NOT NULL,
    datum_m     REAL NOT NULL              -- Chart Datum below the gauge zero mark, metres
);

CREATE TABLE prediction (
    station     TEXT NOT NULL REFERENCES station (code),
    event_at    TEXT NOT NULL,             -- UTC, ISO 8601
    event       TEXT NOT NULL CHECK (event IN ('HW', 'LW')),
    height_m    REAL NOT NULL,
    PRIMARY KEY (station, event_at)
);

CREATE TABLE observation (
    station     TEXT NOT NULL REFERENCES station (code),
    observed_at TEXT NOT NULL,
    level_m     REAL NOT NULL,
    quality     TEXT NOT NULL CHECK (quality IN ('good', 'spike', 'stale')),
    PRIMARY KEY (station, observed_at)
);

CREATE INDEX observation_newest ON observation (station, quality, observed_at DESC);

-- Retention agreed with the hydrographic office on 2021-06-08: raw readings are thinned to hourly means
-- after 24 months, predictions are never deleted.
CREATE VIEW latest_level AS
SELECT station, MAX(observed_at) AS observed_at, level_m
FROM observation
WHERE quality = 'good'
GROUP BY station;

INSERT INTO station VALUES ('SIG', 'Signal Tower', 54.6127, 4.1832, 0.35);
INSERT INTO station VALUES ('BAR', 'Outer Bar buoy', 54.6481, 4.0917, 0.00);
