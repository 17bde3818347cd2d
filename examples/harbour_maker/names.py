"""Pools of names for ships, people and companies. Company and ship names are invented; likeness is chance."""

from __future__ import annotations

from itertools import product

_WOMEN = (
    "Anna Grete Johanna Elisabeth Frieda Helga Ingeborg Dorthe Mette Signe Wilhelmina Catharina "
    "Geertje Hendrika Sara Lena Birthe Aaltje Karen"
).split()
_SECOND = "Maria Sofie Elise Margrethe Louise Charlotte Theresia Helene Dorothea Cecilie Antonia".split()
_SEAS = ("Norse Baltic Atlantic Nordic Iberian Celtic Arctic Hanseatic Caledonian Biscay Frisian Pomeranian").split()
_BULK = "Venture Carrier Prosperity Merchant Endeavour Mariner Courage Grace Fortune Resolve".split()
_RIVERS = "Elbe Weser Schelde Maas Ems Oder Eider Trave Vecht IJssel".split()
_FEEDER = "Express Feeder Bridge Runner".split()
_TANKER = "Ocean Stella Fjord Amber Silver".split()
_PLANTS = "Heather Juniper Bramble Clover Yarrow Sorrel Lyra Vega Orion Carina".split()
_FIELDS = "Aske Dogger Viking Forties Fisher Cromarty Utsira".split()
_OFFSHORE = "Provider Supporter Sentinel Ranger".split()


def _pairs(first: list[str], second: list[str]) -> list[str]:
    return [f"{a} {b}" for a, b in product(first, second)]


SHIP_NAMES: dict[str, list[str]] = {
    "general": _pairs(_WOMEN[:12], _SECOND),
    "coaster": _pairs(_WOMEN[12:], _SECOND),
    "bulk": _pairs(_SEAS, _BULK),
    "container": _pairs(_RIVERS, _FEEDER),
    "tanker": _pairs(_TANKER[:3], _PLANTS),
    "chemical": _pairs(_TANKER[3:], _PLANTS),
    "offshore": _pairs(_FIELDS, _OFFSHORE),
    "roro": [
        "Aske Bridge",
        "Nordzee Star",
        "Kattegat Star",
        "Zeelandia Freight",
        "Skagen Trailer",
        "Holm Courier",
        "Haringvliet",
        "Fionia Freight",
    ],
    "cruise": [
        "Azure Duchess",
        "Nordlys Explorer",
        "Castilla Real",
        "Queen Mathilda",
        "Silver Petrel",
        "Isle of Sarn",
        "Vega Polaris",
        "Belle Époque",
        "Sea Lantern",
        "Midnight Fjord",
    ],
    "heavy": [
        "Titan Jade",
        "Herkules Bay",
        "Zwaan Lifter",
        "Jumbo Fjell",
        "Svanen Kraft",
        "Atlas Trader II",
        "Brage Carrier",
        "Thor Spirit",
    ],
    "fishing": [
        "Havørn",
        "Sæbjørg",
        "Grietje Bos",
        "Trui van Hinte",
        "Morgenster",
        "Estrella del Norte",
        "Nuestra Señora del Mar",
        "Sanne Louise",
        "Fru Bodil",
        "Alba Nova",
        "Blåhval",
        "Jonge Jan",
        "Playa de Laxe",
        "Twee Gebroeders",
        "Nordkap II",
        "Skarven",
        "Lise Beate",
        "Vrouwe Jacoba",
        "Gullholm",
        "Ana Begoña",
        "Stormvogel",
        "Tre Søstre",
        "Ora et Labora",
        "Silver Darling",
        "Provider II",
        "Guiding Light",
        "Boy Andrew",
        "Quo Vadis",
        "Deux Frères",
        "L'Étoile du Nord",
    ],
}

# kind: (share of the fleet, LOA range, beam/LOA, draught/LOA, GT per LOA^2, DWT/GT)
SHIP_SHAPES: dict[str, tuple[int, tuple[float, float], float, float, float, float]] = {
    "general": (96, (86.0, 143.0), 0.150, 0.056, 0.37, 1.42),
    "coaster": (52, (62.0, 88.0), 0.145, 0.055, 0.34, 1.45),
    "bulk": (62, (120.0, 188.0), 0.155, 0.048, 0.55, 1.55),
    "container": (34, (118.0, 184.0), 0.158, 0.049, 0.56, 1.25),
    "tanker": (27, (100.0, 158.0), 0.155, 0.057, 0.52, 1.50),
    "chemical": (18, (84.0, 114.0), 0.152, 0.061, 0.40, 1.45),
    "roro": (8, (128.0, 192.0), 0.138, 0.036, 0.62, 0.42),
    "cruise": (10, (132.0, 228.0), 0.135, 0.033, 0.84, 0.13),
    "heavy": (8, (118.0, 176.0), 0.152, 0.050, 0.55, 1.05),
    "offshore": (26, (48.0, 92.0), 0.210, 0.062, 0.52, 0.95),
    "fishing": (30, (18.0, 56.0), 0.240, 0.092, 0.30, 0.35),
}

FLAGS: dict[str, tuple[str, ...]] = {
    "fishing": ("Denmark", "Netherlands", "Spain", "Norway", "United Kingdom", "France"),
    "roro": ("Denmark", "Netherlands", "Sweden"),
    "cruise": ("Bahamas", "Malta", "Norway", "Bermuda"),
}
OTHER_FLAGS = (
    "Netherlands",
    "Germany",
    "Denmark",
    "Norway",
    "Cyprus",
    "Malta",
    "Liberia",
    "Antigua and Barbuda",
    "Finland",
    "Sweden",
    "United Kingdom",
    "Portugal",
    "Gibraltar",
    "Poland",
)

PORTS = (
    "Rotterdam",
    "Hamburg",
    "Antwerp",
    "Esbjerg",
    "Gdynia",
    "Bilbao",
    "Vigo",
    "Aarhus",
    "Bergen",
    "Stavanger",
    "Göteborg",
    "Immingham",
    "Aberdeen",
    "Riga",
    "Klaipėda",
    "Tallinn",
    "Kotka",
    "Amsterdam",
    "Vlissingen",
    "Brake",
    "Rostock",
    "Le Havre",
    "Dunkerque",
    "Lisboa",
    "A Coruña",
    "Cork",
    "Leith",
    "Måløy",
    "Reykjavík",
    "Szczecin",
)

GIVEN = (
    "Anders Brigitte Callum Daniela Erik Fiona Gerrit Hannah Ivo Jasmin Kasper Leila Marek Nadia "
    "Oskar Paula Quinn Rosa Stefan Thea Ulrik Vera Wim Yusuf Zofia Bram Clara Dermot Elin Femke "
    "Gareth Hilde Iris Joost Kirsty Lars Maud Niall Olga Pieter"
).split()
FAMILY = (
    "Aldous Brandt Carver Dijkstra Eriksen Fairlie Grønlund Hartley Ibsen Jansen Kowalski Lindqvist "
    "Moreau Nolan Oosterhuis Petersen Quist Rasmussen Sandoval Thorne Ullmann Visser Whitlock Ystad "
    "Zander Bakker Cullen Drury Ekberg Farrow Gill Holt Ivens Jessop Kerr Lund Marsh Novak Orme Pryce"
).split()

# country: (legal forms, cities, street pattern endings, telephone prefix)
COUNTRIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str]] = {
    "Netherlands": (
        ("BV",),
        ("Rotterdam", "Den Haag", "Delfzijl", "Vlissingen", "Harlingen", "Groningen"),
        ("Havenstraat", "Maaskade", "Waalhaven Oostzijde", "Scheepmakerslaan", "Prins Hendrikkade"),
        "+31",
    ),
    "Germany": (
        ("GmbH", "GmbH & Co. KG", "AG"),
        ("Hamburg", "Bremen", "Köln", "Lübeck", "Emden", "Rostock"),
        ("Hafenstraße", "Am Sandtorkai", "Schifferweg", "Brückenstraße", "Reedereiallee"),
        "+49",
    ),
    "Denmark": (
        ("A/S", "ApS"),
        ("København", "Esbjerg", "Aarhus", "Ærøskøbing", "Svendborg"),
        ("Havnegade", "Toldbodgade", "Kystvejen", "Nordre Kaj", "Skippergade"),
        "+45",
    ),
    "Norway": (
        ("AS", "ASA"),
        ("Bergen", "Stavanger", "Ålesund", "Oslo", "Haugesund"),
        ("Strandgaten", "Skoltegrunnskaien", "Kirkegata", "Sjøgata"),
        "+47",
    ),
    "United Kingdom": (
        ("Ltd", "plc"),
        ("Hull", "Aberdeen", "Leith", "London", "Grimsby", "Ipswich"),
        ("Dock Street", "Harbour Road", "Quayside", "Commercial Street", "Marsh Lane"),
        "+44",
    ),
    "Sweden": (
        ("AB",),
        ("Göteborg", "Malmö", "Helsingborg", "Gävle"),
        ("Hamngatan", "Skeppsbron", "Packhusplatsen", "Kajvägen"),
        "+46",
    ),
    "Spain": (
        ("SL", "SA"),
        ("Bilbao", "Vigo", "A Coruña", "Gijón"),
        ("Calle del Puerto", "Avenida de la Marina", "Muelle de Levante", "Rúa da Ribeira"),
        "+34",
    ),
    "France": (
        ("SARL", "SA", "SAS"),
        ("Dunkerque", "Le Havre", "Saint-Malo", "Lorient"),
        ("Quai de la Citadelle", "Rue du Port", "Avenue Amiral Lebel", "Rue de l'Écluse"),
        "+33",
    ),
    "Belgium": (
        ("NV", "BV"),
        ("Antwerpen", "Gent", "Oostende", "Zeebrugge"),
        ("Kaaistraat", "Scheldelaan", "Vismijnlaan", "Noorderlaan"),
        "+32",
    ),
    "Poland": (
        ("Sp. z o.o.", "SA"),
        ("Gdynia", "Gdańsk", "Szczecin"),
        ("ul. Portowa", "ul. Żeglarska", "ul. Stoczniowców"),
        "+48",
    ),
}

COMPANY_ROOTS: dict[str, tuple[str, ...]] = {
    "Netherlands": (
        "Vandenberg",
        "Hollander",
        "Oosterschelde",
        "Merwede",
        "Zeewind",
        "Noordgat",
        "Vlieland",
        "Dollard",
        "Grevelingen",
    ),
    "Germany": (
        "Hansekontor",
        "Brügmann",
        "Falkenstein",
        "Ostsee",
        "Westerems",
        "Kranich",
        "Möwenhafen",
        "Trave",
        "Störtebeker",
    ),
    "Denmark": (
        "Nordkyst",
        "Jylland",
        "Rødby",
        "Østerlars",
        "Hvidsten",
        "Lillebælt",
        "Skagerrak",
        "Sørensen",
    ),
    "Norway": ("Stormfjord", "Kvitøy", "Bjørnsund", "Lofthus", "Romsdal", "Sunnfjord", "Havskjær"),
    "United Kingdom": (
        "Albemarle",
        "Cawthorne",
        "Fitzgibbon",
        "Thornbury",
        "Tynecastle",
        "Humberside",
        "Northwick",
        "Solent",
        "Wetherby",
        "Ashdown",
        "Redshank",
        "Guillemot",
        "Turnstone",
    ),
    "Sweden": ("Bohus", "Kattvik", "Öresund", "Ångerman", "Lindholm", "Skärgård"),
    "Spain": ("Cantábrico", "Ferrol", "Finisterre", "Galerna", "Ribadeo", "Rías Altas"),
    "France": ("Morlaix", "Cotentin", "Picardie", "Trégor", "Armor", "Côte d'Opale"),
    "Belgium": ("Escaut", "Zwin", "Brabo", "Leie", "Noordduin"),
    "Poland": ("Pomorze", "Bałtyk", "Wisła", "Neptun", "Żuraw"),
}

COMPANY_TRADES: dict[str, tuple[str, ...]] = {
    "operator": (
        "Shipping",
        "Rederi",
        "Bulk Carriers",
        "Maritime",
        "Tankers",
        "Lines",
        "Coasters",
        "Seatrade",
    ),
    "agent": ("Ship Agency", "Agencies", "Port Agency"),
    "cargo owner": (
        "Timber Trading",
        "Grain",
        "Steel",
        "Aggregates",
        "Fertilisers",
        "Paper",
        "Chemicals",
        "Fuels",
        "Salt",
        "Wind Components",
        "Cement",
        "Feeds",
        "Minerals",
    ),
    "stevedore": ("Stevedoring", "Terminals", "Cargo Handling"),
    "fishing": ("Seafoods", "Fishing", "Fish Processing"),
    "supplier": (
        "Marine Services",
        "Bunkering",
        "Ship Supplies",
        "Waste Reception",
        "Diving",
        "Towage",
        "Surveyors",
    ),
}
