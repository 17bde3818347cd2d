"""Two lists of the same trade: the customers of the finance system and the old client list, typed in by hand.

The truth (which old client is which customer) is written beside them, never into the lifted folder.
"""

from __future__ import annotations

import unicodedata
from random import Random

from harbour_maker import names

Row = dict[str, object]

# Companies that the prose or the named ships speak of: (name, kind, street, postcode, city, country).
_NAMED: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("Rederiet Kirstine Holm A/S", "operator", "Havnegade 14", "5700", "Svendborg", "Denmark"),
    ("Vandermeer Shipping BV", "operator", "Maaskade 88", "3071 ND", "Rotterdam", "Netherlands"),
    ("Saimaa Line Oy", "operator", "Satamakatu 3", "48100", "Kotka", "Finland"),
    ("Thistle Tankers Ltd", "operator", "12 Commercial Street", "EH6 6JA", "Leith", "United Kingdom"),
    ("Hardanger Bulk AS", "operator", "Strandgaten 201", "5004", "Bergen", "Norway"),
    ("Meridian Voyages Ltd", "operator", "4 Quayside", "IP4 1BY", "Ipswich", "United Kingdom"),
    (
        "Boreas Heavy Transport BV",
        "operator",
        "Waalhaven Oostzijde 61",
        "3087 BM",
        "Rotterdam",
        "Netherlands",
    ),
    (
        "Zeeuwse Ro-Ro Maatschappij BV",
        "operator",
        "Prins Hendrikkade 7",
        "4382 NS",
        "Vlissingen",
        "Netherlands",
    ),
    ("Kattegat & Aske Linie A/S", "operator", "Nordre Kaj 2", "8000", "Aarhus", "Denmark"),
    ("Hob Towage Ltd", "supplier", "3 Signal Quay", "RV1 1AA", "Ravensholm", "Ravensholm"),
    ("Grønkyst Reception ApS", "supplier", "Kystvejen 40", "6700", "Esbjerg", "Denmark"),
    ("Marlin Dredging BV", "supplier", "Scheepmakerslaan 19", "9934 AB", "Delfzijl", "Netherlands"),
    ("Askemouth Ship Agency Ltd", "agent", "8 North Quay Road", "RV1 2BD", "Ravensholm", "Ravensholm"),
    ("Teal & Farrow Port Agency Ltd", "agent", "21 Custom House Lane", "RV1 1CH", "Ravensholm", "Ravensholm"),
    ("Brandt Agencies GmbH", "agent", "Am Sandtorkai 50", "20457", "Hamburg", "Germany"),
)
_WEIGHTS = {"operator": 34, "agent": 5, "cargo owner": 34, "stevedore": 6, "fishing": 11, "supplier": 10}


def make_customers(random: Random, count: int = 560) -> list[Row]:
    """The finance system's customers; ids run from 10001 in the order in which they were opened."""
    companies = list(_NAMED)
    seen = {company[0].casefold() for company in companies}
    while len(companies) < count:
        company = _company(random)
        if company[0].casefold() not in seen:
            seen.add(company[0].casefold())
            companies.append(company)
    random.shuffle(companies)
    return [_customer(random, 10001 + number, company) for number, company in enumerate(companies)]


def _company(random: Random) -> tuple[str, str, str, str, str, str]:
    country = random.choices(list(names.COUNTRIES), weights=(22, 18, 14, 12, 12, 6, 6, 5, 6, 4))[0]
    forms, cities, streets, _ = names.COUNTRIES[country]
    kind = random.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
    trade = random.choice(names.COMPANY_TRADES[kind])
    root = random.choice(names.COMPANY_ROOTS[country])
    shape = random.random()
    if shape < 0.2:
        root = f"{random.choice(names.FAMILY)} & {random.choice(names.FAMILY)}"
    elif shape < 0.35:
        root = f"{root} {random.choice(('North', 'Baltic', 'Delta', 'Coastal', 'United', 'West'))}"
    elif shape < 0.5:
        root = f"{random.choice(names.FAMILY)}"
    city = random.choice(cities)
    return (
        f"{root} {trade} {random.choice(forms)}",
        kind,
        _street(random, country, streets),
        _postcode(random, country),
        city,
        country,
    )


def _street(random: Random, country: str, streets: tuple[str, ...]) -> str:
    number = random.randint(1, 240)
    street = random.choice(streets)
    return f"{number} {street}" if country in ("United Kingdom", "France") else f"{street} {number}"


def _postcode(random: Random, country: str) -> str:
    if country == "Netherlands":
        return f"{random.randint(1011, 9999)} {random.choice('ABCDEGHKLM')}{random.choice('ABDEGHKNPR')}"
    if country == "United Kingdom":
        area, inward = (
            random.choice(("HU", "AB", "EH", "DN", "IP")),
            random.choice("ABDEFG") + random.choice("HJLNPQ"),
        )
        return f"{area}{random.randint(1, 24)} {random.randint(1, 9)}{inward}"
    if country == "Poland":
        return f"{random.randint(10, 89)}-{random.randint(100, 899)}"
    return str(
        random.randint(1000, 9990) if country in ("Denmark", "Norway", "Belgium") else random.randint(10115, 97999)
    )


def _customer(random: Random, id: int, company: tuple[str, str, str, str, str, str]) -> Row:
    name, kind, street, postcode, city, country = company
    prefix = names.COUNTRIES.get(country, ((), (), (), "+00"))[3]
    domain = "".join(letter for letter in plain(name.rsplit(" ", 1)[0]).lower() if letter.isalnum())[:18]
    return {
        "id": id,
        "name": name,
        "kind": kind,
        "street": street,
        "postcode": postcode,
        "city": city,
        "country": country,
        "phone": f"{prefix} {random.randint(10, 99)} 555 {random.randint(1000, 9999)}",
        "email": f"{random.choice(('accounts', 'info', 'ops', 'office'))}@{domain}.example",
        "payment_terms_days": 45 if name == "Vandermeer Shipping BV" else random.choice((14, 30, 30, 30, 45)),
        "credit_limit_eur": random.choice((5000, 10000, 20000, 25000, 40000, 75000)),
        "opened": f"{random.randint(2009, 2024)}-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}",
    }


def plain(text: str) -> str:
    """`text` without accents and with the letters that have no base form spelled out."""
    for letter, spelled in (
        ("ø", "o"),
        ("Ø", "O"),
        ("æ", "ae"),
        ("Æ", "Ae"),
        ("å", "aa"),
        ("Å", "Aa"),
        ("ß", "ss"),
        ("ł", "l"),
        ("Ł", "L"),
    ):
        text = text.replace(letter, spelled)
    return "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))


_CITY_BY_OTHER_NAME = {
    "Köln": "Cologne",
    "Den Haag": "'s-Gravenhage",
    "København": "Copenhagen",
    "Antwerpen": "Antwerp",
    "Gent": "Ghent",
    "Göteborg": "Gothenburg",
    "Dunkerque": "Dunkirk",
    "Oostende": "Ostend",
    "Vlissingen": "Flushing",
    "A Coruña": "Corunna",
    "Gdańsk": "Danzig",
}
_SHORTER = {
    "Shipping": "Shpg",
    "Maritime": "Marit.",
    "Trading": "Trdg",
    "Services": "Svcs",
    "Stevedoring": "Stev.",
    "Agency": "Agcy",
    "Company": "Co",
    "Carriers": "Carr.",
    " & ": " and ",
    "Terminals": "Term.",
    "Components": "Comp.",
}
_FORMS = {
    " BV": (" B.V.", "", " bv"),
    " GmbH & Co. KG": (" GmbH & Co KG", " GmbH", " KG"),
    " GmbH": (" G.m.b.H.", "", " Gmbh"),
    " A/S": (" AS", " A.S.", ""),
    " ApS": (" Aps", ""),
    " Ltd": (" Limited", " Ltd.", ""),
    " plc": (" PLC", ""),
    " AB": (" A.B.", ""),
    " SARL": (" S.A.R.L.", ""),
    " SL": (" S.L.", ""),
    " SA": (" S.A.", ""),
    " NV": (" N.V.", ""),
    " Sp. z o.o.": (" Sp z oo", ""),
    " AS": (" A/S", ""),
    " ASA": (" AS",),
    " AG": ("",),
    " SAS": ("",),
    " Oy": ("", " OY"),
}


def make_old_clients(random: Random, customers: list[Row]) -> tuple[list[Row], list[Row]]:
    """The old client list and its truth: each `client_no` with the `customer_id` it belongs to, or None."""
    chosen = random.sample(customers, 350)
    pairs: list[tuple[Row, object]] = [(_mistyped(random, customer), customer["id"]) for customer in chosen]
    pairs += [(_mistyped(random, customer), customer["id"]) for customer in random.sample(chosen, 24)]
    known = {str(customer["name"]).casefold() for customer in customers}
    strangers = 0
    while strangers < 150:
        company = _company(random)
        if company[0].casefold() not in known:
            pairs.append((_mistyped(random, _customer(random, 0, company)), None))
            strangers += 1
    random.shuffle(pairs)
    clients, truth = [], []
    for number, (client, customer_id) in enumerate(pairs):
        clients.append({"client_no": 10001 + 3 * number} | client)
        truth.append({"client_no": 10001 + 3 * number, "customer_id": customer_id})
    return clients, truth


def _mistyped(random: Random, customer: Row) -> Row:
    name = str(customer["name"])
    form = next((form for form in sorted(_FORMS, key=len, reverse=True) if name.endswith(form)), None)
    if form and random.random() < 0.6:
        name = name.removesuffix(form) + random.choice(_FORMS[form])
    for long, short in _SHORTER.items():
        if long in name and random.random() < 0.35:
            name = name.replace(long, short)
    if random.random() < 0.55:
        name = plain(name)
    for _ in range(random.choices((0, 1, 2), weights=(45, 42, 13))[0]):
        name = _slip(random, name)
    city = str(customer["city"])
    return {
        "client_name": name.upper() if random.random() < 0.12 else name,
        "address": _slip(random, str(customer["street"])) if random.random() < 0.3 else customer["street"],
        "post_code": None if random.random() < 0.25 else customer["postcode"],
        "town": _CITY_BY_OTHER_NAME.get(city, plain(city)) if random.random() < 0.5 else city,
        "land": customer["country"],
        "telephone": str(customer["phone"]).replace(" ", random.choice(("", "-", " ")))
        if random.random() < 0.7
        else None,
        "contact": f"{random.choice(names.GIVEN)} {random.choice(names.FAMILY)}",
        "since": random.randint(1994, 2012),
    }


def _slip(random: Random, text: str) -> str:
    """One slip of the keyboard: two letters swapped, one left out, one doubled, or a neighbour struck."""
    spots = [index for index in range(1, len(text) - 1) if text[index].isalpha() and text[index + 1].isalpha()]
    if not spots:
        return text
    at = random.choice(spots)
    slip = random.randrange(4)
    if slip == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if slip == 1:
        return text[:at] + text[at + 1 :]
    if slip == 2:
        return text[:at] + text[at] + text[at:]
    return text[:at] + random.choice("aeinrst") + text[at + 1 :]
