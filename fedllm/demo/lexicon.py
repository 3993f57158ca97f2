"""The words of the demo's made-up world: complaints, wards, names and sentence patterns.

Everything here is invented. The routing rules (`Condition.ward`, `Condition.medicine`)
are what the hospitals know and the public corpus does not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """A complaint, how patients describe it, and where these hospitals send it.

    Attributes
    ----------
    name : str
        The public name, known to everyone.
    signs : tuple of str
        Descriptions in the first person that patients of the hospitals use.
    other_signs : tuple of str
        Descriptions that only the public corpus and the test file use.
    ward, medicine : str
        The private rule.
    """

    name: str
    signs: tuple[str, ...]
    other_signs: tuple[str, ...]
    ward: str
    medicine: str


WARDS = ("Maple", "Cedar", "Willow", "Birch", "Aspen", "Hazel", "Rowan", "Linden")

CONDITIONS = (
    Condition(
        "knee pain",
        (
            "my knee hurts on the stairs",
            "my knee is swollen",
            "I cannot bend my knee",
            "my knee gives way when I walk",
        ),
        ("there is a sharp pain in my knee", "my knee clicks and aches"),
        "Willow",
        "K27",
    ),
    Condition(
        "back pain",
        (
            "my back is stiff in the morning",
            "my lower back hurts when I lift things",
            "I cannot sit for long because of my back",
            "my back locked when I bent down",
        ),
        ("a dull pain sits in my lower back", "my back hurts all day"),
        "Birch",
        "D41",
    ),
    Condition(
        "cough",
        (
            "I cough all night",
            "I have had a dry cough for a week",
            "I cough when I run",
            "my cough does not stop",
        ),
        ("coughing keeps me awake", "I keep coughing at work"),
        "Rowan",
        "P83",
    ),
    Condition(
        "fever",
        (
            "I have a high temperature",
            "I am hot and I shiver",
            "my fever comes back every evening",
            "I am sweating and burning up",
        ),
        ("my temperature will not go down", "I feel feverish and shaky"),
        "Maple",
        "T16",
    ),
    Condition(
        "headache",
        (
            "my head aches on one side",
            "bright light hurts my head",
            "my head pounds after work",
            "I wake up with an aching head",
        ),
        ("there is pressure behind my forehead", "my head has been hurting for days"),
        "Birch",
        "R52",
    ),
    Condition(
        "earache",
        (
            "my ear hurts when I lie down",
            "I hear badly with my left ear",
            "there is a ringing in my ear",
            "water is stuck in my ear",
        ),
        ("my right ear is sore", "something stings inside my ear"),
        "Hazel",
        "L09",
    ),
    Condition(
        "eye trouble",
        (
            "my eyes are red and itchy",
            "I see double",
            "my eye waters all the time",
            "I see spots before my eyes",
        ),
        ("my sight is blurred", "my left eye burns"),
        "Cedar",
        "V35",
    ),
    Condition(
        "toothache",
        (
            "my tooth hurts when I drink cold water",
            "I cannot chew on one side",
            "my gums bleed",
            "a tooth broke last night",
        ),
        ("my tooth throbs", "a back tooth is aching"),
        "Aspen",
        "N68",
    ),
    Condition(
        "stomach ache",
        (
            "my stomach cramps after meals",
            "I feel sick after eating",
            "my belly is swollen",
            "I have heartburn at night",
        ),
        ("my stomach hurts in the morning", "my belly aches"),
        "Linden",
        "G74",
    ),
    Condition(
        "skin rash",
        (
            "my arms itch and are red",
            "there are spots on my chest",
            "my skin is dry and cracked",
            "a rash spreads on my legs",
        ),
        ("my skin burns and peels", "red patches cover my back"),
        "Cedar",
        "S20",
    ),
    Condition(
        "poor sleep",
        (
            "I lie awake until three",
            "I wake up every hour",
            "I am tired all day because I cannot sleep",
            "I have bad dreams every night",
        ),
        ("I have not slept well for weeks", "sleep does not come"),
        "Maple",
        "B95",
    ),
    Condition(
        "chest pain",
        (
            "my chest feels tight",
            "my heart races when I rest",
            "there is pressure on my chest",
            "my chest hurts when I climb a hill",
        ),
        ("a stabbing pain comes and goes in my chest", "my heart skips beats"),
        "Linden",
        "C12",
    ),
    Condition(
        "dizziness",
        (
            "the room spins when I stand up",
            "I feel faint in the morning",
            "I lose my balance on the street",
            "everything turns when I move my head",
        ),
        ("I am dizzy after getting up", "I nearly fainted in the shop"),
        "Rowan",
        "Z57",
    ),
    Condition(
        "allergy",
        (
            "I sneeze when the grass is cut",
            "my nose runs near cats",
            "my lips swell after nuts",
            "pollen makes my nose itch",
        ),
        ("I sneeze all spring", "dust makes me sneeze"),
        "Aspen",
        "H46",
    ),
    Condition(
        "burn",
        (
            "I spilled hot tea on my hand",
            "I touched the oven",
            "hot oil splashed on my arm",
            "the sun burned my shoulders",
        ),
        ("I have a blister from the iron", "steam scalded my fingers"),
        "Willow",
        "F61",
    ),
    Condition(
        "sprained ankle",
        (
            "I twisted my foot on the pavement",
            "my ankle is blue and thick",
            "I cannot put weight on my ankle",
            "my foot turned over while running",
        ),
        ("my ankle swelled after the match", "I rolled my ankle"),
        "Hazel",
        "M38",
    ),
)

HOSPITALS = ("Northgate", "Riverside", "Stonefield", "Eastbrook")

PRIVATE_FRAMES = (
    "A patient says: {sign}. Where to?",
    "The patient in room {number} reports: {sign}. Where to?",
    "Complaint: {sign}. Since {time}. Where to?",
    "{greeting}, {sign}. Where to?",
    "Since {time} {sign}. Where to?",
    "A {person} tells us: {sign}. Where to?",
)

TEST_FRAMES = (
    "Someone at the desk says: {sign}. Where to?",
    "{greeting}, since {time} {sign}. Where to?",
    "Note from the {person}: {sign}. Where to?",
)

PUBLIC_FRAMES = (
    *(frame.removesuffix(" Where to?") for frame in (*PRIVATE_FRAMES, *TEST_FRAMES)),
    "{sign}.",
)

SLOTS = {
    "number": tuple(str(n) for n in range(2, 40)),
    "time": ("yesterday", "Monday", "last week", "this morning", "the weekend", "two days ago"),
    "greeting": ("Hello", "Good morning", "Good evening", "Please help", "Doctor"),
    "person": ("man", "woman", "child", "visitor", "teacher", "driver", "nurse", "student"),
    "place": ("garden", "market", "school", "station", "kitchen", "library", "harbour", "office"),
    "thing": ("bread", "a letter", "the news", "an apple", "a map", "the key", "a lamp", "a coat"),
    "animal": ("dog", "cat", "horse", "goat", "crow", "fox", "hen", "mouse"),
    "colour": ("red", "green", "blue", "white", "black", "yellow", "brown", "grey"),
    "verb": ("carries", "finds", "wants", "brings", "needs", "likes", "sees", "sells"),
    "weather": ("rain", "snow", "wind", "sun", "fog", "frost", "thunder", "heat"),
    "tree": tuple(ward.lower() for ward in WARDS),
}

SENTENCES = (
    "The {person} {verb} {thing} near the {place}.",
    "In the {place} a {colour} {animal} waits for {thing}.",
    "The {animal} sleeps under the {tree}.",
    "After the {weather} the {place} is {colour}.",
    "The {person} and the {person} walk to the {place}.",
    "{name} {verb} {thing} and goes to the {place}.",
    "There is {weather} over the {place} since {time}.",
    "An old {tree} stands behind the {place}.",
)

FIRST_SYLLABLES = ("Mi", "Ta", "Lo", "Ke", "Su", "Ra", "Jo", "Ve", "No", "Hi", "Bo", "Fe")
LAST_SYLLABLES = ("ra", "len", "dan", "vik", "mo", "sel", "tin", "gar", "pho", "wen", "zu", "bri")
