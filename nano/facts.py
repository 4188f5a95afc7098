"""The facts that nano is to know, from the packages that sources.sh fetches:  python facts.py build/sources

Writes facts.json: `facts` [relation, subject, object], `glosses` (prose for haystacks) and `words` (for copying), so
that later phases need no package. Refuses to write fewer than 1,000 facts.
"""

import json
import sqlite3
import sys
from pathlib import Path

COUNTRIES, ELEMENTS, DEFINITIONS, GLOSSES, WORDS = 140, 80, 160, 600, 400
NOT_SOVEREIGN = {
    "Hong Kong",
    "Puerto Rico",
    "Reunion",
    "Palestine",
    "Macao",
    "Western Sahara",
    "Guadeloupe",
    "Martinique",
    "French Guiana",
    "New Caledonia",
    "French Polynesia",
}
# Names under which the two country packages list the same country, and what people call it.
SAME = {"Türkiye": ("Turkey", "Turkey"), "Czechia": ("Czech Republic", "Czechia"), "Fiji": ("Fiji Islands", "Fiji")}

OPPOSITES = (
    "hot cold,big small,up down,fast slow,good bad,day night,happy sad,old new,open closed,high low,light dark,"
    "left right,wet dry,hard soft,full empty,early late,strong weak,long short,rich poor,in out,true false,"
    "first last,near far,black white,clean dirty,loud quiet,thick thin,wide narrow,deep shallow,sharp blunt,"
    "sweet sour,war peace,love hate,begin end,buy sell,give take,push pull,win lose,remember forget,inside outside,"
    "above below,before after,always never,easy difficult,friend enemy,question answer"
)
ANIMALS = (
    "dog barks four mammal,cat meows four mammal,cow moos four mammal,duck quacks two bird,sheep bleats four mammal,"
    "lion roars four mammal,frog croaks four amphibian,bee buzzes six insect,snake hisses no reptile,"
    "horse neighs four mammal,"
    "pig oinks four mammal,wolf howls four mammal,owl hoots two bird,crow caws two bird,mouse squeaks four mammal,"
    "chicken clucks two bird,goose honks two bird,donkey brays four mammal,elephant trumpets four mammal,"
    "cricket chirps six insect,rooster crows two bird,turkey gobbles two bird,pigeon coos two bird,"
    "monkey chatters two mammal,"
    "tiger growls four mammal,bear grunts four mammal,goat bleats four mammal,fly buzzes six insect"
)
COLOURS = (
    "the sky blue,grass green,snow white,blood red,a banana yellow,coal black,a lemon yellow,a carrot orange,"
    "a strawberry red,milk white,the sea blue,a leaf green,the sun yellow,an elephant grey,"
    "chocolate brown,a raven black,"
    "a tomato red,a pumpkin orange,salt white,a lime green,a flamingo pink,a violet purple"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()


def countries(root):
    """(name, capital, continent, currency) of the most populous sovereign countries."""
    load = lambda path: json.loads((root / path).read_text())
    population = {r["country"]: r["population"] or 0 for r in load("country-json/src/country-by-population.json")}
    currencies = load("countries-list/currencies.all.min.json")
    continents = load("countries-list/continents.min.json")
    rows = []
    for c in load("countries-list/countries.min.json").values():
        listed, name = SAME.get(c["name"], (c["name"], c["name"]))
        if population.get(listed, 0) and name not in NOT_SOVEREIGN and c["capital"] and len(c["currency"]):
            rows.append(
                (
                    population[listed],
                    name,
                    c["capital"],
                    continents[c["continent"]],
                    currencies[c["currency"][0]]["name"],
                )
            )
    rows.sort(reverse=True)
    return [r[1:] for r in rows[:COUNTRIES]]


def glosses(root):
    """(word, first gloss of its most usual sense) of common nouns, most frequent first."""
    counts, lines, out = {}, {}, []
    for line in (root / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        lemma = key.split("%")[0]
        counts[lemma] = counts.get(lemma, 0) + int(count)
    for line in (root / "data.noun").read_text(errors="ignore").splitlines():
        if not line.startswith("  "):
            left, gloss = line.split("|", 1)
            lines[left.split()[0]] = gloss.strip().split(";")[0].split('"')[0].strip()
    for line in (root / "index.noun").read_text(errors="ignore").splitlines():
        if not line.startswith("  "):
            f = line.split()
            word, gloss = f[0], lines.get(f[-int(f[2])], "")
            if word.isalpha() and len(word) > 2 and 15 < len(gloss) < 70 and "(" not in gloss:
                out.append((counts.get(word, 0), word, gloss))
    out.sort(key=lambda r: (-r[0], r[1]))
    return [(w, g) for _, w, g in out]


def facts(root):
    out = []
    for name, capital, continent, currency in countries(root):
        out += [
            ("capital", name, capital),
            ("country", capital, name),
            ("continent", name, continent),
            ("currency", name, currency),
        ]
    database = sqlite3.connect(root / "mendeleev/mendeleev/elements.db")
    for n, symbol, name in database.execute("select atomic_number,symbol,name from elements order by 1").fetchall()[
        :ELEMENTS
    ]:
        name = name.lower()
        out += [("symbol", name, symbol), ("number", name, str(n)), ("element", symbol, name)]
    for pair in OPPOSITES.split(","):
        a, b = pair.split()
        out += [("opposite", a, b), ("opposite", b, a)]
    for animal in ANIMALS.split(","):
        name, sound, legs, kind = animal.split()
        out += [("sound", name, sound), ("legs", name, legs), ("kind", name, kind)]
    out += [("colour", *pair.rsplit(" ", 1)) for pair in COLOURS.split(",")]
    for names, what in ((DAYS, "day"), (MONTHS, "month")):
        for i, name in enumerate(names):
            out += [(f"{what} after", name, names[(i + 1) % len(names)]), (f"{what} before", name, names[i - 1])]
    prose = glosses(root / "wordnet/usr/share/wordnet")
    out += [("meaning", w, g) for w, g in prose[:DEFINITIONS]]
    return out, prose


def main():
    root = Path(sys.argv[1])
    known, prose = facts(root)
    known = list({(r, x): (r, x, y) for r, x, y in known}.values())
    assert len(known) >= 1000, f"only {len(known)} facts: is {root} complete?"
    words = [w for w, _ in prose[DEFINITIONS:] if 3 <= len(w) <= 7][:WORDS]
    texts = [f"{w}: {g}." for w, g in prose[DEFINITIONS : DEFINITIONS + GLOSSES]]
    out = dict(facts=known, glosses=texts, words=words)
    text = ",\n".join(
        json.dumps(k) + ":[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in vs) + "]"
        for k, vs in out.items()
    )
    Path(__file__).with_name("facts.json").write_text("{" + text + "}\n")
    print(len(known), "facts,", len(texts), "glosses,", len(words), "words")


if __name__ == "__main__":
    main()
