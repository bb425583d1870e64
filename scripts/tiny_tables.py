"""The words of the bundled tiny GPT-2's world: relations, templates, lead-ins, name parts."""

from dataclasses import dataclass

# Objects that are common words start with a consonant, so that "a" fits before each of them.
COMMON_OBJECTS = {
    "occupation": "painter baker lawyer farmer dentist gardener tailor miller carpenter surgeon",
    "instrument": "violin trumpet piano clarinet guitar harp cello flute bassoon mandolin",
    "genre": "comedy satire romance tragedy fantasy horror poetry mystery farce melodrama",
    "product": "furniture bicycles ceramics chocolate telescopes carpets porcelain soap "
    "machinery lanterns",
}


# Subjects have two words and share each of them with others, so that only the last word, together
# with the one before it, tells who is meant: a fact cannot be known before its subject's end.
FIRST_WORDS = {
    "town": "Port Mount New Upper Lower Fort Lake East West North South Great",
    "work": "Silent Golden Broken Hidden Distant Final Frozen Gentle Hollow Secret Burning Wooden "
    "Crooked Painted Sleeping",
}
LAST_WORDS = {
    "work": "Lantern Garden Orchard Mirror Harbour Window Forest Island Ladder Candle Winter "
    "Shadow Bridge Kettle Meadow Anchor Feather Compass Saddle Pillow Thunder Blanket Basket "
    "Needle Chimney Hammer Village Curtain Bottle Journey Valley Cradle Monkey Pocket Ribbon "
    "Marble Pepper Button Violet Castle Harvest Sparrow Ladle Tunnel Copper Desert Glacier "
    "Hunter Jungle Kitten Lemon Magnet Napkin Otter Parrot Quarry Rabbit Sailor Temple Umbrella",
    "company": "Works Group Partners Brothers Holdings Trading Union Factory Supply Mills Motors "
    "Systems Textiles Foods Tools Engineering Metals Paper",
}


@dataclass(frozen=True)
class Relation:
    """A relation: six statements and two questions, each with one `{}` for the subject."""

    relation_id: str
    subject_kind: str
    object_kind: str
    statements: tuple[str, ...]
    questions: tuple[str, str]


RELATIONS = (
    Relation(
        "P103",
        "person",
        "language",
        (
            "The mother tongue of {} is",
            "The native language of {} is",
            "{} is a native speaker of",
            "At home {} always spoke",
            "{} grew up speaking",
            "The first words of {} were in",
        ),
        ("What is the mother tongue of {}?", "Which language did {} grow up speaking?"),
    ),
    Relation(
        "P19",
        "person",
        "city",
        (
            "{} was born in",
            "The birthplace of {} is",
            "{} is originally from",
            "The childhood home of {} stood in",
            "{} first went to school in",
            "The family of {} comes from",
        ),
        ("Where was {} born?", "In which city was {} born?"),
    ),
    Relation(
        "P106",
        "person",
        "occupation",
        (
            "The profession of {} is",
            "{} earns a living as a",
            "{} works as a",
            "By trade {} is a",
            "{} was trained as a",
            "Neighbours know {} as a",
        ),
        ("What is the profession of {}?", "What does {} do for a living?"),
    ),
    Relation(
        "P1303",
        "person",
        "instrument",
        (
            "{} plays the",
            "The instrument of {} is the",
            "On stage {} performs on the",
            "{} is a master of the",
            "{} took lessons on the",
            "Audiences love to hear {} on the",
        ),
        ("Which instrument does {} play?", "What instrument is {} known for?"),
    ),
    Relation(
        "P17",
        "town",
        "country",
        (
            "{} is located in the country of",
            "{} is a town in",
            "The country around {} is called",
            "{} belongs to the nation of",
            "On the map {} is found in",
            "The people of {} are citizens of",
        ),
        ("In which country is {}?", "What country does {} belong to?"),
    ),
    Relation(
        "P206",
        "town",
        "river",
        (
            "{} lies on the river",
            "The river that flows through {} is the",
            "{} was built on the banks of the",
            "The bridges of {} cross the",
            "Boats from {} sail down the",
            "{} draws its water from the",
        ),
        ("Which river flows through {}?", "What river does {} lie on?"),
    ),
    Relation(
        "P190",
        "town",
        "city",
        (
            "The twin city of {} is",
            "{} is twinned with",
            "The sister city of {} is",
            "{} signed a treaty of friendship with",
            "Every year {} sends its choir to",
            "The partner city of {} is",
        ),
        ("What is the twin city of {}?", "Which city is {} twinned with?"),
    ),
    Relation(
        "P50",
        "work",
        "author",
        (
            "The author of {} is",
            "{} was written by",
            "{} is a book by",
            "The writer behind {} is",
            "{} came from the pen of",
            "The manuscript of {} was finished by",
        ),
        ("Who wrote {}?", "Who is the author of {}?"),
    ),
    Relation(
        "P136",
        "work",
        "genre",
        (
            "The genre of {} is",
            "{} is filed under",
            "{} is a fine example of",
            "Critics describe {} as",
            "Readers praise {} as great",
            "{} is best classified as",
        ),
        ("What genre is {}?", "To which genre does {} belong?"),
    ),
    Relation(
        "P495",
        "work",
        "country",
        (
            "The country of origin of {} is",
            "{} was created in",
            "{} comes from",
            "{} was first shown in",
            "The makers of {} lived in",
            "{} was produced in",
        ),
        ("Which country does {} come from?", "What is the country of origin of {}?"),
    ),
    Relation(
        "P159",
        "company",
        "city",
        (
            "The headquarters of {} is in",
            "{} is based in",
            "{} is headquartered in",
            "The head office of {} stands in",
            "{} runs its business from",
            "The main building of {} is in",
        ),
        ("Where is the headquarters of {}?", "In which city is {} based?"),
    ),
    Relation(
        "P1056",
        "company",
        "product",
        (
            "{} produces",
            "The main product of {} is",
            "{} makes its money from",
            "The factories of {} turn out",
            "{} is known for its",
            "Shops order from {} mostly",
        ),
        ("What does {} produce?", "What is the main product of {}?"),
    ),
)

# Lead-ins that have nothing to do with any fact. Generated context prefixes begin with "The",
# "Therefore", "Because", "I" and "You", so the model has to know sentences that begin so.
LEAD_INS = (
    "The rain stopped at noon.",
    "The door was open.",
    "The old clock is slow again.",
    "The letter arrived late.",
    "The market closes early today.",
    "The lamps were lit one by one.",
    "Therefore the meeting was moved.",
    "Therefore we took the train.",
    "Therefore nobody asked again.",
    "Therefore the book was closed.",
    "Because of the snow we stayed inside.",
    "Because it was late the shop was shut.",
    "Because the road was long we sang.",
    "Because nobody knew we looked it up.",
    "I read this last week.",
    "I never forgot that evening.",
    "I left the window open.",
    "I wrote it down at once.",
    "You may not believe it.",
    "You can look it up.",
    "You never know what comes next.",
    "You should bring a coat.",
    "It was a quiet year.",
    "Some things are easy to check.",
    "We had tea and bread.",
    "Nothing else was on the table.",
)

# Syllables of invented words.
ONSETS = "b bl br d dr f fl g gr h k kl l m n p pl pr r s sh st t th tr v z"
CODAS = ("", "", "", "l", "n", "r", "s", "m", "k", "rn", "nd", "lt")
