"""General prompts without a picture, whose replies by the language model itself keep its language; a probe of what it knows."""

PLACES = ("Italy", "Spain", "Japan", "Egypt", "Canada", "Brazil", "Greece", "Poland", "Norway", "Peru")
THINGS = (
    "fruits",
    "vegetables",
    "animals",
    "rivers",
    "tools",
    "sports",
    "musical instruments",
    "trees",
    "jobs",
    "drinks",
)
TOPICS = ("the sea", "a small village", "winter", "friendship", "a train journey", "bread", "an old clock", "music", "a dog",
          "rain", "a library", "the moon", "a market", "a teacher", "summer holidays")  # fmt: skip
IDEAS = ("gravity", "a democracy", "a volcano", "photosynthesis", "a battery", "inflation", "a vaccine", "recycling", "a comet",
         "an algorithm", "evaporation", "a sonnet", "the food chain", "a savings account", "a bridge")  # fmt: skip
HOWS = ("make tea", "boil an egg", "fold a letter", "plant a seed", "clean a window", "learn a word", "write a note of thanks",
        "start a diary", "keep a bicycle clean", "pack a suitcase")  # fmt: skip
PROMPTS = (
    *(f"What is the capital of {place}?" for place in PLACES),
    *(f"Name three {things}." for things in THINGS),
    *(f"Write one sentence about {topic}." for topic in TOPICS),
    *(f"Explain in one sentence what {idea} is." for idea in IDEAS),
    *(f"How do I {what}? Answer briefly." for what in HOWS),
    *(f"What is {a} plus {b}?" for a, b in ((2, 2), (5, 3), (10, 4), (7, 6), (20, 30))),
    "Hello, how are you?", "Tell me a short joke.", "Why is the sky blue?", "What colour is grass?", "Who wrote Hamlet?",
    "Give me a word that rhymes with cat.", "What day comes after Monday?", "How many months has a year?",
    "Translate 'good morning' into French.", "What do bees make?", "Thank you for your help!", "What is the opposite of hot?",
    "Give me a title for a story about a lost key.", "Is a whale a fish?", "What is paper made of?",
)  # fmt: skip
"""None is one of the facts below."""

FACTS = (
    ("What is the capital of France?", "paris"), ("What is the capital of Germany?", "berlin"),
    ("What is the capital of England?", "london"), ("What is the capital of Russia?", "moscow"),
    ("What is the capital of China?", "beijing"), ("What is the largest ocean?", "pacific"),
    ("Which planet is known as the red planet?", "mars"), ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What gas do plants take in from the air?", "carbon dioxide"), ("What is the chemical symbol of gold?", "au"),
    ("How many days are in a week?", "seven|7"), ("How many legs does a spider have?", "eight|8"),
    ("What is the freezing point of water in degrees Celsius?", "0|zero"), ("Who painted the Mona Lisa?", "leonardo|vinci"),
    ("What language is spoken in Mexico?", "spanish"), ("Which animal is the largest on Earth?", "whale"),
    ("What do you call frozen water?", "ice"), ("Which star is closest to the Earth?", "sun"),
    ("What is the currency of Japan?", "yen"), ("On which continent is Kenya?", "africa"),
)  # fmt: skip
"""Questions, and words of which a right reply holds one."""

PASSAGES = (
    "The water in the river was low after the long summer, and the boats lay on their sides in the mud. Nobody in the village "
    "could remember a year as dry as this one. In the evening the old men sat in front of the church and talked about rain.",
    "A library is a place where books are kept so that people can read them or borrow them. Many libraries also have newspapers, "
    "music and computers. The people who work there help visitors to find what they need.",
    "To bake a simple bread you need flour, water, salt and yeast. Mix them, knead the dough for ten minutes and let it rest in "
    "a warm place until it is twice as large. Then bake it in a hot oven for about forty minutes.",
    "In 1969 two astronauts walked on the Moon for the first time, while a third one waited in orbit around it. They collected "
    "rocks, took photographs and returned safely to the Earth a few days later.",
)
"""Plain text, written for this probe."""
