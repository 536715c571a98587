"""How people say colours, shapes, sizes and places: many phrases for each word of the picture
model's grammar.

The grammar's words and first synonyms come from `atelier.builtin.shapes`; this file adds what
people say besides. A phrase belongs to one word, so that what a wish means is never in doubt.
"""

from atelier.builtin.shapes.prompts import COLOUR_WORDS, RELATION_WORDS, SHAPE_WORDS, SIZE_WORDS

Phrases = dict[str, tuple[str, ...]]


def _joined(grammar: Phrases, more: Phrases) -> Phrases:
    return {word: (*synonyms, *more[word]) for word, synonyms in grammar.items()}


COLOUR_PHRASES = _joined(
    COLOUR_WORDS,
    {
        "red": ("ruby", "reddish", "blood-red", "cherry-red", "vermilion"),
        "orange": ("amber", "apricot", "pumpkin-coloured"),
        "yellow": ("lemon", "sunny", "canary", "yellowish", "gold"),
        "green": ("lime", "olive", "greenish", "grass-green", "jade"),
        "cyan": ("teal", "greenish-blue"),
        "blue": ("navy", "cobalt", "bluish", "sky-blue", "sapphire"),
        "purple": ("lilac", "plum", "lavender", "mauve"),
        "pink": ("rosy", "salmon", "fuchsia", "pinkish"),
        "black": ("ebony", "jet-black", "coal-black", "pitch-black"),
        "white": ("snowy", "ivory", "snow-white", "chalk-white"),
    },
)
# "a circle the colour of ..."
COLOUR_LIKENESSES: Phrases = {
    "red": ("a tomato", "a strawberry", "blood", "a fire engine"),
    "orange": ("a carrot", "a pumpkin"),
    "yellow": ("the sun", "a banana", "a lemon"),
    "green": ("grass", "a leaf", "a frog"),
    "cyan": ("a swimming pool", "a lagoon"),
    "blue": ("the sky", "the sea"),
    "purple": ("an aubergine", "a grape"),
    "pink": ("a flamingo", "a pig", "bubble gum"),
    "black": ("coal", "the night", "a raven"),
    "white": ("snow", "milk"),
}
SHAPE_PHRASES = _joined(
    SHAPE_WORDS,
    {
        "circle": ("dot", "round shape", "round thing", "roundel"),
        "square": ("block", "shape with four equal sides"),
        "triangle": ("three-sided shape", "shape with three corners"),
        "diamond": ("square standing on its corner", "diamond shape"),
        "star": ("five-pointed shape", "shape with five points", "star shape"),
        "heart": ("love symbol", "heart shape"),
        "cross": ("plus sign", "cross shape"),
    },
)
# After "something": each says a shape by its look alone.
SHAPE_LOOKS: Phrases = {
    "circle": ("round", "circular", "ball-shaped"),
    "square": ("square", "boxy", "box-shaped"),
    "triangle": ("triangular", "three-sided", "three-cornered"),
    "diamond": ("diamond-shaped", "rhombic"),
    "star": ("star-shaped", "starry", "five-pointed"),
    "heart": ("heart-shaped", "like a heart"),
    "cross": ("cross-shaped", "plus-shaped"),
}
SIZE_PHRASES = _joined(
    SIZE_WORDS,
    {"small": ("mini", "wee", "miniature"), "large": ("giant", "great", "enormous", "gigantic")},
)
RELATION_PHRASES = {
    word: (word, *phrases)
    for word, phrases in _joined(
        RELATION_WORDS,
        {
            "above": ("higher than", "atop"),
            "below": ("lower than",),
            "left of": ("on the left of", "on the left side of"),
            "right of": ("on the right of", "on the right side of"),
        },
    ).items()
}
# Where no side is said, a wish gets the first one; in a question these words would have no one
# answer.
BESIDE = ("next to", "beside")
# "a star with a square ... it": the second thing's place, seen from the first.
PLACE_PHRASES: Phrases = {
    "above": ("above it", "over it", "on top of it"),
    "below": ("below it", "under it", "beneath it", "underneath it"),
    "left of": (
        "to its left",
        "on its left",
        "on the left of it",
        "left of it",
        "to the left of it",
    ),
    "right of": (
        "to its right",
        "on its right",
        "on the right of it",
        "right of it",
        "to the right of it",
    ),
}
# "... at the top and ... at the bottom"
SIDE_PHRASES: Phrases = {
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
}
REQUESTS = (
    "{}", "{}", "{}", "{} please", "{}, please", "I'd like {}", "I would like {} please",
    "I'd like to see {}",
    "I'd like {} please", "I would like {}", "I want {}", "I wish for {}", "I need {}", "draw {}",
    "please draw {}",
    "draw me {} please", "paint {}", "paint me {}", "show me {}", "give me {}", "make {}",
    "could you draw {}?",
    "can you make {}?", "can you draw {}?", "could I have {}?", "may I see {}?", "how about {}?",
    "let me see {}",
    "please make a picture of {}", "make a picture of {}", "a picture of {}",
    "a picture with {}, please",
    "an image of {}", "a drawing of {}", "a photo of {}", "generate {}", "generate an image of {}",
    "generate a picture of {}", "create a picture of {}", "create an image of {}",
    "create an image with {}",
    "please generate a picture of {}", "I imagine {}", "I am thinking of {}",
    "we need {} for a poster",
    "my daughter wants {}", "our friends would love {}", "my mother would like {}",
    "she hopes for {}",
    "would you paint {} for me?", "what I want is {}", "it should show {}",
    "the picture should have {}", "make me a picture showing {}", "my wish: {}", "I'd love {}",
    "could we have {}?",
    "do me {}", "will you make {} for me?", "how would {} look?", "please show me {}",
    "let's have {}",
)  # fmt: skip
# These ask for the words, not for the picture: answered in words even where a tool could draw.
PROMPT_REQUESTS = (
    "prompt for {}", "write the prompt for {}", "what is the prompt for {}?",
    "turn this into a prompt: {}",
    "a prompt for {} please", "give me the prompt for {}", "how do I write {} as a prompt?",
    "scene prompt: {}",
    "which prompt gives {}?", "write a scene prompt for {}", "rewrite as a prompt: {}",
)  # fmt: skip
SCENE_REQUESTS_IN_JSON = (
    "{} as JSON", "{} as json please", "give me the JSON of {}", "describe {} as JSON",
    "JSON for {} please",
    "return {} as a JSON object", "write {} as JSON", "turn {} into JSON", "answer with JSON: {}",
    "{}, in JSON", "{}. Answer as JSON", "I need {} as JSON", "output JSON for {}",
    "{} in JSON format",
)  # fmt: skip
SAME_SCENE_IN_JSON = (
    "as JSON please", "give me the scene as JSON", "and as JSON?", "write it as JSON",
    "now in JSON",
    "describe the scene as JSON", "turn it into JSON", "show me the JSON", "the same as JSON",
)  # fmt: skip
# A scene that is told, and a question about it, in one message.
STATEMENTS = (
    "{scene}. {question}", "Scene: {scene}. {question}", "There is {scene}. {question}",
    "In a picture of {scene}: {question}", "Here is a scene: {scene}. {question}",
    "{question} The scene: {scene}.",
    "{question} Scene: {scene}", "I see {scene}. {question}", "Imagine {scene}. {question}",
    "The picture shows {scene}. {question}", "Given {scene}: {question}",
    "Look at {scene}. {question}",
    "The scene is {scene}. {question}", "A picture shows {scene}. {question}",
    "{scene}: {question}",
    "Take {scene}. {question}", "We have {scene}. {question}", "Scene: {scene}\n{question}",
)  # fmt: skip
GREETINGS = ("Hello! ", "Hi, ", "Hi! ", "Hey, ", "Hello, ", "Good morning. ", "Good evening, ")
CLOSINGS = (" Thank you!", " Thanks.", " Thanks a lot!")
