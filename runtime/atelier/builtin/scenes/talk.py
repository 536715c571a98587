"""Small talk and everything that is not about scenes: what people say, and the fixed answers to
it."""

import random

from atelier.builtin.shapes.scene import COLOURS, RELATIONS, SHAPES, SIZES


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1]


HELLO = "Hello! Tell me which shapes you would like to see, or ask me about a scene."
ABILITY = (
    "I turn wishes into scene prompts, answer questions about scenes and call a picture tool when"
    " there is one."
)
WELCOME = "You are welcome."
GOODBYE = "Goodbye!"
WHICH_SCENE = "Which scene do you mean? Tell me what it shows."
ELSEWHERE = (
    "I only know scenes of simple shapes. Try a wish such as a red circle above a blue square."
)
FINE = "I am fine, thank you. Which shapes would you like to see?"

FIXED: dict[str, tuple[str, ...]] = {
    HELLO: (
        "Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening",
        "Good day", "Greetings",
        "Hello!", "Hi!", "Hey!", "Hello, who is there?", "Hello world", "Say hello", "Say hi",
        "hello model",
        "Say hello.",
    ),
    FINE: ("How are you?", "How do you do?", "How are you today?", "Are you well?",
        "How is it going?", "What's up?"),
    ABILITY: (
        "Who are you?", "What are you?", "What can you do?", "What do you do?", "Help",
        "How can you help me?",
        "What is your job?", "Tell me about yourself", "Introduce yourself", "What can I ask you?",
        "help please",
        "What is this?", "How does this work?", "What are you good at?",
        "Which skills do you have?",
        "What's your name?",
        "What is your name?", "Explain what you can do", "Are you a language model?",
        "Can you help me?",
        "Test", "test",
    ),
    WELCOME: (
        "Thank you", "Thanks", "Thanks a lot", "Thank you very much", "Many thanks",
        "Great, thanks", "Cheers",
        "Nice, thank you", "Very nice", "That is lovely", "Perfect", "Well done", "Great",
        "Good job", "I like it",
    ),
    GOODBYE: ("Goodbye", "Bye", "Bye bye", "See you", "See you later", "Good night", "That is all",
        "Farewell"),
    f"I know the colours {_listed(COLOURS)}.": (
        "Which colours do you know?", "List all colours", "What colors can you use?",
        "Name the colours you know",
        "Which colors are there for me to choose?", "What colours are possible?",
        "List the colors you know",
    ),
    f"I know the shapes {_listed(SHAPES)}.": (
        "Which shapes do you know?", "List all shapes", "What shapes can you use?",
        "Name the shapes you know",
        "What shapes are possible?", "List the shapes you know", "Which shapes can you draw?",
    ),
    f"I know the sizes {_listed(SIZES)}.": (
        "Which sizes do you know?", "What sizes can you use?", "What sizes are possible?",
        "List all sizes",
    ),
    f"I know the relations {_listed(RELATIONS)}.": (
        "Which relations do you know?", "How can shapes stand to each other?",
        "What relations are possible?",
        "List all relations",
    ),
}  # fmt: skip

SUBJECTS = (
    "the weather", "France", "the moon landing", "quantum physics", "a good soup",
    "the stock market", "football",
    "my homework", "the Roman empire", "dinosaurs", "Python", "machine learning",
    "the capital of Spain", "Kubernetes",
    "poetry", "trains", "the meaning of life", "a holiday in Italy", "chess", "electric cars",
    "cats and dogs", "jazz",
    "the history of Rome", "volcanoes", "coffee", "gardening", "the news", "a computer program",
    "Shakespeare", "love",
    "politics", "the ocean", "my grandmother", "mathematics", "birds", "the president", "bread",
    "mountains", "Japan",
)  # fmt: skip
OFF_TOPIC = (
    "Tell me about {}", "What do you know about {}?", "Explain {}", "Write a poem about {}",
    "What is {}?",
    "Can you help me with {}?", "Tell me a joke about {}", "Write a story about {}",
    "Who invented {}?",
    "Write an essay on {}", "Why is {} important?", "How does {} work?", "Summarise {}",
    "Give me advice on {}",
    "I have a question about {}", "Do you like {}?", "When did {} begin?", "Sing a song about {}",
    "Translate {}",
    "What do people think of {}?", "How can I learn about {}?", "Discuss {}", "Write code for {}",
    "Where is {}?",
)  # fmt: skip
OFF_TOPIC_FIXED = (
    "What is the capital of France?", "Count to ten", "Count from 1 to 20", "What is 2 + 2?",
    "What time is it?",
    "Tell me a joke", "Tell me a story", "Once upon a time", "Write a haiku", "Write a long story",
    "Sing me a song",
    "What is the weather in Paris?", "How is the weather in Berlin today?", "Why is the sky blue?",
    "Translate to German",
    "The quick brown fox jumps over the lazy dog", "Do you dream?", "How old are you?",
    "Say something", "Say one word",
    "Lorem ipsum dolor sit amet", "What day is it?", "Who is the president?", "Are you alive?",
    "Repeat after me: hello",
    "Draw a cat", "draw a house with a garden", "Paint my dog", "a picture of a horse",
    "Draw an elephant",
    "Write a poem",
)  # fmt: skip
WITHOUT_SCENE = (
    "What colour is the {}?", "Which color is the {}?", "Where is the {}?", "How big is the {}?",
    "Is the {} large?",
    "What is left of the {}?", "What is above the {}?", "How many shapes are there?",
    "Describe the scene",
    "What is in the picture?", "Make the {} bigger", "Make it bigger", "Swap them",
    "Remove the {}", "Is there a {}?",
)  # fmt: skip


def small_talk(rng: random.Random, has_scene: bool) -> tuple[str, str]:
    """What somebody says and the answer; `has_scene` says whether a scene was spoken of."""
    draw = rng.random()
    if draw < 0.55:
        answer = rng.choice(list(FIXED))
        return rng.choice(FIXED[answer]), answer
    if draw < 0.70 and not has_scene:
        return rng.choice(WITHOUT_SCENE).format(rng.choice(SHAPES)), WHICH_SCENE
    if draw < 0.82:
        return rng.choice(OFF_TOPIC_FIXED), ELSEWHERE
    if draw < 0.90:
        return noise(rng, rng.randint(3, 12)), ELSEWHERE
    return rng.choice(OFF_TOPIC).format(rng.choice(SUBJECTS)), ELSEWHERE


def noise(rng: random.Random, words: int) -> str:
    """So many words without sense, some of them not even words."""
    pool = " ".join((*SUBJECTS, *OFF_TOPIC_FIXED)).split()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    said = (rng.choice(pool) if rng.random() < 0.8 else "".join(rng.choices(letters,
        k=rng.randint(2, 9)))
            for _ in range(words))  # fmt: skip
    return " ".join(said)
