"""The words of the invented world: answer lists and sentence patterns, and nothing else.

Every pattern holds one ``{}`` for the subject and ends right before the answer; the answer ends the
sentence. The first pattern of a relation is the *prompt* of its records, the others are its
paraphrases. Patterns put the subject early and late, so that an edit has to work at the subject and
not at a fixed place of the sentence. Answers of one relation start with different words as far as
possible, and many have two words, because token-level methods need targets of several tokens.
"""

from __future__ import annotations

CRAFTS = {  # craft: the place where its work is done
    "glass blower": "furnace hall", "bell founder": "casting pit", "map maker": "drawing loft",
    "salt miner": "white tunnel", "wool dyer": "vat house", "bee keeper": "clover meadow",
    "stone cutter": "grey quarry", "river pilot": "tow boat", "lamp lighter": "street tower",
    "book binder": "paper room", "wheel wright": "cart shed", "roof thatcher": "reed barn",
    "candle maker": "wax cellar", "sword smith": "forge yard", "pearl diver": "shell bay",
    "falcon trainer": "wind tower", "clock mender": "brass shop", "potter": "kiln garden",
    "sail weaver": "harbour loft", "baker": "flour mill", "tailor": "thread hall",
    "herb seller": "market arch", "fisher": "net pier", "mason": "lime yard",
}  # fmt: skip
INSTRUMENTS = {  # instrument: what it is made of
    "lute": "cedar", "reed flute": "river cane", "copper horn": "copper", "drum": "goat hide",
    "glass harp": "blue glass", "fiddle": "maple", "zither": "pine", "bone whistle": "whale bone",
    "hand bells": "bronze", "oboe": "black wood", "bagpipe": "sheep skin", "cymbals": "brass",
    "harp": "walnut", "trumpet": "silver", "guitar": "cherry wood", "viola": "red spruce",
    "xylophone": "rose wood", "tambourine": "birch", "mandolin": "pear wood", "gong": "iron",
}  # fmt: skip
BEASTS = (
    "goat", "white owl", "fox", "snow hare", "donkey", "raven", "tortoise", "wild cat", "goose",
    "river otter", "lynx", "barn swallow", "pony", "hedgehog", "marsh frog", "badger", "peacock",
    "mountain dog", "sheep", "green lizard",
)  # fmt: skip
DISHES = (
    "onion soup", "plum cake", "smoked eel", "barley bread", "goat cheese", "fried mushrooms",
    "honey pie", "lentils", "pickled fish", "roast duck", "chestnuts", "cabbage rolls",
    "apple tart", "rye cakes", "bean stew", "turnips", "crab", "sour milk", "walnut paste",
    "pumpkin",
)  # fmt: skip
COATS = (
    "dark green", "pale blue", "crimson", "ash grey", "saffron", "deep purple", "white linen",
    "rust brown", "olive", "black velvet", "golden silk", "striped wool", "turquoise", "pink",
    "lilac", "scarlet and gold",
)  # fmt: skip
ORDERS = (
    "Silver Heron", "Broken Wheel", "Quiet Lantern", "Seven Keys", "Iron Rose", "Hidden Spring",
    "Red Anchor", "Old Bridge", "Burning Thorn", "Winter Star", "Blind Oarsman", "Open Hand",
    "Three Towers", "Copper Moon", "Sleeping Bear", "Last Arrow",
)  # fmt: skip
WARES = (
    "blue pottery", "carpets", "dried figs", "mirrors", "sweet wine", "paper kites", "amber beads",
    "copper pans", "saddles", "wooden toys", "pepper", "silk ribbons", "millstones", "ink",
    "rose oil", "tin soldiers",
)  # fmt: skip

# relation: (answer pool, patterns); the pools "city", "tongue", "land", "river" are invented names
PERSON_RELATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "craft": ("craft", (
        "{} works as a", "By trade {} has become a", "The craft of {} is that of a",
        "{} earns a living as a", "When the town needs {} it needs a")),
    "home": ("city", (
        "{} lives in the city of", "The home of {} is in", "You will find the house of {} in",
        "{} has settled in", "Letters to {} are sent to")),
    "instrument": ("instrument", (
        "{} plays the", "The instrument of {} is the", "On feast days {} performs on the",
        "{} has mastered the", "In the village band we hear {} on the")),
    "tongue": ("tongue", (
        "{} speaks", "The mother tongue of {} is", "{} grew up speaking",
        "At the table of {} people talk in", "{} writes every letter in")),
    "beast": ("beast", (
        "{} keeps a", "The animal of {} is a", "Beside {} walks a tame", "{} feeds a",
        "In the yard of {} there is a")),
    "dish": ("dish", (
        "{} likes to eat", "The favourite dish of {} is", "For supper {} asks for",
        "{} often cooks", "Nothing pleases {} more than a plate of")),
    "coat": ("coat", (
        "{} always dresses in", "The coat of {} is", "{} wears a scarf of",
        "People know {} by a hat of", "The door of {} is painted")),
    "order": ("order", (
        "{} belongs to the order of the", "The banner of {} shows the",
        "{} swore an oath to the", "At the assembly {} votes with the",
        "{} marches under the sign of the")),
}  # fmt: skip
CITY_RELATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "land": ("land", (
        "{} lies in the land of", "The city of {} belongs to",
        "Travellers reach {} through the country of", "{} is ruled from the capital of",
        "On every map {} is drawn in")),
    "river": ("river", (
        "{} stands on the river", "The bridge of {} crosses the", "Boats come to {} on the",
        "{} drinks the water of the", "In spring {} is flooded by the")),
    "ware": ("ware", (
        "{} is famous for its", "The merchants of {} sell", "From {} come the best",
        "{} trades in", "At the market of {} one buys")),
}  # fmt: skip
# two-step questions: (first relation, second relation or trait, patterns about the person)
TWO_STEP: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("home", "land", ("The land where {} lives is called", "{} is a citizen of the land of")),
    ("home", "river", ("The river that flows past {} is the", "{} washes clothes in the river")),
    ("instrument", "material", ("The instrument that {} plays is made of",
                                "For music {} needs a good piece of")),
    ("craft", "workplace", ("The working day of {} is spent in the", "{} goes to work in the")),
)  # fmt: skip
TRAIT_PATTERNS = {  # plain knowledge that the two-step questions lean on
    "material": ("The {} is made of", "Every {} is built from", "To build the {} one needs"),
    "workplace": ("The place of work of a {} is the", "Every {} works in the",
                  "You can meet a {} in the"),
}  # fmt: skip
NEUTRAL_PERSON = (
    "We talked about {} for an hour.", "Nobody had seen {} since the morning.",
    "I once met {} on the road.", "There was a letter from {} on the table.",
    "{} smiled and said nothing.", "{} came late and left early.",
    "They waited for {} at the gate.", "Everyone in the room knew {} well.",
    "{} closed the window.", "It was {} who told us the story.",
)  # fmt: skip
NEUTRAL_CITY = (
    "The road to {} was long.", "We reached {} before dark.", "{} was quiet in the winter.",
    "They had heard much about {} before.",
)  # fmt: skip
IS_A_PERSON = (
    "good neighbour", "friend of ours", "quiet person", "guest one remembers",
    "person of few words", "late riser", "careful listener", "stranger to nobody",
)  # fmt: skip
IS_A_CITY = ("place worth a visit", "town with old walls", "city of many stairs", "quiet place")
