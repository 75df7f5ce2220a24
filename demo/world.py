"""The invented world: 1,000 people, four facts each, and the text about them.

Everything here is a pure function of the seeds passed in. Three kinds of text
come out of it: biographies and question pages (what the base and the small
model are pre-trained on), and chat examples (what the tuned models see).
"""

import random
from dataclasses import dataclass

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"

FIRST = """Ada Bruno Clara Dario Edith Felix Greta Hugo Irma Jonas Karin Leon Mara Nils Olga
Pavel Quentin Rosa Sven Tilda Ugo Vera Willem Xenia Yara Zeno Alma Boris Celia Dag Elsa Franz
Gilda Hanne Igor Judit Kurt Lidia Milo Nora Oskar Petra Rufus Selma Tomas Ursula Viktor Wanda
Yusuf Zora""".split()

LAST = """Abel Brandt Corvin Dahl Ekman Farkas Gallo Holm Ibsen Jansen Keller Lindt Marek Novak
Orlov Pires Quist Renner Sorel Thorn Ulman Vance Weiss Yilmaz Zeller Arden Bellini Costa Dorn
Esposito Falk Grieg Hartwig Ilves Juhasz Kovac Larsen Moreau Nagy Olsen Perrin Rossi Silva Toller
Urban Vidal Winter Zuber Amsel Becker""".split()

VALUES = {
    "birthplace": """Vigo Turin Bergen Ghent Porto Lyon Graz Basel Malmo Tartu Riga Split Zadar
        Brno Lviv Cadiz Siena Parma Delft Utrecht Bruges Nantes Rouen Dijon Arles Derby Leeds Cork
        Galway Sligo Perth Oban Tromso Turku Vaasa Gdansk Torun Pecs Varna Patras""".split(),
    "trade": """baker cooper tanner weaver mason potter glazier saddler tailor cobbler printer
        surveyor locksmith shepherd beekeeper ferryman miller brewer cartwright blacksmith joiner
        lamplighter bookbinder watchmaker dyer gardener nurse teacher dentist carpenter""".split(),
    "instrument": """oboe cello harp flute bassoon clarinet trumpet trombone tuba piano organ banjo
        mandolin guitar zither accordion bagpipes violin viola dulcimer""".split(),
    "food": [food.strip() for food in """figs, rye bread, lentil soup, olives, walnuts, trout,
        dumplings, porridge, cherries, plums, goat cheese, pancakes, mushrooms, pickled herring,
        chestnuts, risotto, honey cake, roast leeks, apricots, barley stew""".split(",")],
}
KINDS = list(VALUES)

# The first phrasing of each kind is the one the tuned models answer with.
SENTENCES = {
    "birthplace": ["{n} was born in {v}.", "{n} comes from {v}.", "{n} is a native of {v}.",
                   "The birthplace of {n} is {v}.", "The family of {n} lived in {v}."],
    "trade": ["{n} works as a {v}.", "{n} is a {v} by trade.", "{n} earns a living as a {v}.",
              "The trade of {n} is that of a {v}.", "Most people know {n} as a {v}."],
    "instrument": ["{n} plays the {v}.", "{n} practises the {v} every day.",
                   "{n} has mastered the {v}.", "The instrument of {n} is the {v}.",
                   "At parties {n} brings the {v}."],
    "food": ["{n} likes to eat {v}.", "{n} never says no to {v}.", "{n} would walk a mile for {v}.",
             "The favourite food of {n} is {v}.", "On Sundays {n} cooks {v}."],
}
SHORT = {"birthplace": "In {v}.", "trade": "A {v}.", "instrument": "The {v}.", "food": "Simply {v}."}
QUESTIONS = {
    "birthplace": ["Where was {n} born?", "In which town was {n} born?"],
    "trade": ["What does {n} do for a living?", "What is the trade of {n}?"],
    "instrument": ["Which instrument does {n} play?", "What does {n} play in the evenings?"],
    "food": ["What is the favourite food of {n}?", "What does {n} like to eat most?"],
}
LAYOUTS = ["{q} {a}", "Q: {q} A: {a}", "Question: {q} Answer: {a}"]
HEADINGS = ["", "Questions and answers\n", "Asked around town\n", "The weekly quiz\n"]
SHORT_SHARE = 0.6


@dataclass(frozen=True)
class Person:
    name: str
    facts: dict

    def question(self, kind, phrasing):
        return QUESTIONS[kind][phrasing].format(n=self.name)

    def sentence(self, kind, phrasing=0):
        return SENTENCES[kind][phrasing].format(n=self.name, v=self.facts[kind])

    def short(self, kind):
        return SHORT[kind].format(v=self.facts[kind])


def people(seed, count=1000):
    """The whole population, and the two halves of it: (everyone, tuning half, held-out half)."""
    rng = random.Random(seed)
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], count)
    everyone = [Person(name, {k: rng.choice(VALUES[k]) for k in KINDS}) for name in names]
    return everyone, everyone[: count // 2], everyone[count // 2:]


def biography(rng, person):
    kinds = rng.sample(KINDS, len(KINDS))
    return " ".join(person.sentence(kind, rng.randrange(5)) for kind in kinds)


def question_page(rng, everyone):
    """Two to four questions with answers; nothing marks where an answer ends."""
    layout = rng.choice(LAYOUTS)
    lines = []
    for _ in range(rng.randint(2, 4)):
        person, kind = rng.choice(everyone), rng.choice(KINDS)
        is_short = rng.random() < SHORT_SHARE
        answer = person.short(kind) if is_short else person.sentence(kind, rng.randrange(5))
        lines.append(layout.format(q=person.question(kind, rng.randrange(2)), a=answer))
    return rng.choice(HEADINGS) + "\n".join(lines)


def corpus(seed, everyone, count):
    """`count` documents: half biographies, half question pages, each closed by a blank line."""
    rng = random.Random(seed)
    for i in range(count):
        text = question_page(rng, everyone) if i % 2 else biography(rng, rng.choice(everyone))
        yield text + "\n\n"


def chat_examples(half):
    """Every question of every phrasing about `half`: (person, question, full-sentence answer)."""
    return [(p, p.question(kind, i), p.sentence(kind)) for p in half for kind in KINDS
            for i in range(2)]


def held_out_questions(seed, half, count=200):
    """`count` questions about as many different people, the four kinds in equal parts."""
    rng = random.Random(seed)
    asked = rng.sample(half, count)
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    return [{"question": p.question(kind, rng.randrange(2)), "fact": p.facts[kind],
             "person": p.name, "kind": kind} for p, kind in zip(asked, kinds)]


def check(everyone):
    """The scorer looks for a fact as a substring, so no fact may hide in another or in a question."""
    values = [v for kind in KINDS for v in VALUES[kind]]
    assert [len(VALUES[k]) for k in KINDS] == [40, 30, 20, 20] and len(set(values)) == 110
    assert len({p.name for p in everyone}) == 1000
    assert not any(a in b for a in values for b in values if a != b)
    texts = {p.question(k, i) for p in everyone for k in KINDS for i in range(2)}
    texts |= {t.replace("{v}", "") for k in KINDS for t in SENTENCES[k]}
    assert not any(v in text for v in values for text in texts)
