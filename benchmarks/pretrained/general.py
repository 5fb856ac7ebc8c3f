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
    *(f"{word} means the same as what other word?" for word in ("Happy", "Quick", "Large", "Begin", "Brave")),
    *(f"Rewrite politely: {text}" for text in ("Give me the salt.", "Move your car.", "You are late.", "Call me back.")),
    *(f"Which is larger, {a} or {b}?" for a, b in (("a mouse", "a horse"), ("a lake", "an ocean"), ("12", "21"))),
    "Hello, how are you?", "Tell me a short joke.", "Why is the sky blue?", "What colour is grass?", "Who wrote Hamlet?",
    "Give me a word that rhymes with cat.", "What day comes after Monday?", "How many months has a year?",
    "Translate 'good morning' into French.", "What do bees make?", "Thank you for your help!", "What is the opposite of hot?",
    "Give me a title for a story about a lost key.", "Is a whale a fish?", "What is paper made of?",
    "Good morning!", "What can you help me with?", "I feel tired today.", "Wish me luck for my exam.",
    "What is your favourite season?",
    "Why do leaves fall in autumn?", "Why does ice float on water?", "Why do we sleep?", "Why do cats purr?",
    "Correct this sentence: She go to school every day.", "Make this shorter: I am writing to you in order to ask for help.",
    "Put this into the past tense: I walk home.", "What is half of 50?", "What is 3 times 4?", "How many minutes are in an hour?",
    "Suggest a name for a small bakery.", "Suggest a gift for a friend who likes reading.", "What should I pack for the beach?",
    "List the four seasons.", "List the primary colours.", "Who was Albert Einstein?", "What is a kilometre?",
    "What is the difference between a lake and a river?",
)  # fmt: skip
"""None is one of the facts below."""

FACTS = (
    ("What is the capital of France?", "paris"), ("What is the capital of Germany?", "berlin"),
    ("What is the capital of England?", "london"), ("What is the capital of Russia?", "moscow"),
    ("What is the capital of China?", "beijing"), ("What is the largest ocean?", "pacific"),
    ("Which planet is known as the red planet?", "mars"), ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What gas do plants take in from the air?", "carbon dioxide|co2"), ("What is the chemical symbol of gold?", "au"),
    ("How many days are in a week?", "seven|7"), ("How many legs does a spider have?", "eight|8"),
    ("What is the freezing point of water in degrees Celsius?", "0|zero"), ("Who painted the Mona Lisa?", "leonardo|vinci"),
    ("What language is spoken in Mexico?", "spanish"), ("Which animal is the largest on Earth?", "whale"),
    ("What do you call frozen water?", "ice"), ("Which star is closest to the Earth?", "sun"),
    ("What is the currency of Japan?", "yen"), ("On which continent is Kenya?", "africa"),
    ("How many hours are in a day?", "24|twenty-four"), ("Who was the first president of the United States?", "washington"),
    ("What is the longest wall in the world?", "china"), ("What is the hardest natural substance?", "diamonds?"),
    ("Which organ pumps blood through the body?", "heart"), ("What is the tallest mountain in the world?", "everest"),
    ("Which planet has large rings around it?", "saturn"), ("How many sides does a triangle have?", "three|3"),
    ("In which country are the pyramids of Giza?", "egypt"), ("What do caterpillars turn into?", "butterfl(?:y|ies)|moths?"),
)  # fmt: skip
"""Questions, and words of which a right reply holds one."""

PASSAGES = (
    "The water in the river was low after the long summer, and the boats lay on their sides in the mud. Nobody in the village "
    "could remember a year as dry as this one. In the evening the old men sat in front of the church and talked about rain.",
    "A library is a place where books are kept so that people can read them or borrow them. Many libraries also have "
    "newspapers, music and computers. The people who work there help visitors to find what they need.",
    "To bake a simple bread you need flour, water, salt and yeast. Mix them, knead the dough for ten minutes and let it rest in "
    "a warm place until it is twice as large. Then bake it in a hot oven for about forty minutes.",
    "In 1969 two astronauts walked on the Moon for the first time, while a third one waited in orbit around it. They collected "
    "rocks, took photographs and returned safely to the Earth a few days later.",
    "My grandmother kept bees behind her house. Every August she put on a white coat and a hat with a veil, and we children "
    "watched from the kitchen window while she took the honey.",
    "A bicycle has two wheels, a frame, a chain and two pedals. When the rider pushes the pedals, the chain turns the back "
    "wheel. It costs little, needs no fuel and takes up hardly any space.",
    "The meeting begins at nine o'clock in the large room on the second floor. Please bring last month's figures with you. If "
    "you cannot come, tell Anna before Thursday so that she can find somebody else.",
    "Snow fell all night. In the morning the street was quiet, the cars had disappeared under white hills, and the only tracks "
    "were those of a cat that had walked from one door to the next.",
    "Glass is made from sand, which is melted at a very high temperature together with soda and lime. While it is hot it can be "
    "blown or poured into a form. When it cools it becomes hard and clear.",
    "He had been a sailor for thirty years, and now that he lived on land he could not sleep without the sound of the sea. So "
    "his daughter gave him a small machine that imitated the waves.",
    "Prices rise when many people want to buy something of which there is little. They fall when shops have more than they can "
    "sell. This is why strawberries are cheap in June and expensive in December.",
    "The train from the north was late again. A woman with a green suitcase asked the guard how long it would take, but he only "
    "shrugged and pointed at the clock above the platform.",
    "Most birds build their nests in spring. Some use twigs and grass, others mud or feathers. The young birds stay in the nest "
    "until their wings are strong enough to carry them.",
    "If a glass of water stands in the sun, the water slowly disappears. It has become vapour, which rises into the air. High "
    "up, where it is cold, the vapour turns into drops again, and these form clouds.",
    "The teacher put a map on the wall and asked who could find the island. At first nobody moved. Then a girl in the last row "
    "came to the front and laid her finger on a tiny dot in the middle of the blue.",
    "A good night's sleep helps people to remember what they have learned during the day. Doctors advise adults to sleep about "
    "eight hours, to go to bed at the same time every evening, and to leave the telephone in another room.",
    "There were three keys on the ring: one for the front door, one for the cellar, and one that nobody knew. For years we tried "
    "it in every lock of the house, until my brother thought of the old piano.",
    "The first printed books in Europe were made in the fifteenth century. Before that, every copy had to be written by hand, "
    "which took months. Printing made books cheaper, and more people learned to read.",
    "Our team lost the first half by two goals. After the break it began to rain, the other side grew tired, and in the last "
    "minute our youngest player scored for the third time.",
    "Wash the potatoes, cut them into thin slices and lay them in a flat dish. Pour the cream over them, add salt, pepper and a "
    "little cheese, and put the dish into the oven until the top is brown.",
)
"""Plain text, written for this probe."""
