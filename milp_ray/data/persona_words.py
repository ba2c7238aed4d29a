"""The words of generated personas: facts, tastes, turns of phrase, sentence patterns.

Who says what, and when, is :mod:`milp_ray.data.personas`'s. ``{name}`` in a pattern is a fact or
taste of the persona, one of several values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


#: One value of each per persona.
FACTS: Mapping[str, tuple[str, ...]] = {
    "city": _list(
        "Lisbon, Oslo, Krakow, Ghent, Turin, Leeds, Porto, Graz, Malmo, Bergen, Seville, Lyon, Bologna, "
        "Utrecht, Dresden, Cork, Bilbao, Zagreb, Tartu, Riga, Nantes, Basel, Brno, Bristol, Aarhus, "
        "Trieste, Valencia, Antwerp, Bremen, Galway"
    ),
    "job": _list(
        "baker, nurse, gardener, plumber, teacher, translator, carpenter, chemist, pilot, florist, tailor, "
        "farmer, librarian, dentist, potter, barber, welder, lawyer, surveyor, printer, sailor, roofer, "
        "butcher, journalist, cook"
    ),
    "pet": _list("cat, dog, rabbit, parrot, pony, goat, tortoise, ferret, hamster, goose, donkey, canary"),
    "petname": _list(
        "Biscuit, Momo, Pepper, Otto, Luna, Ziggy, Clover, Bruno, Waffle, Juno, Pickle, Ruby, Hugo, Maple, "
        "Toffee, Basil, Frida, Nico, Olive, Rocket, Saffron, Tilda, Moss, Pixel, Gus, Hazel, Ember, Figaro, "
        "Noodle, Willow, Bandit, Poppy, Sesame, Dotty, Casper, Truffle, Mabel, Rufus, Sherlock"
    ),
    "avoid": _list(
        "peanuts, shellfish, milk, eggs, gluten, celery, mustard, sesame oil, strawberries, soy, walnuts, "
        "tomatoes, garlic, kiwi"
    ),
    "hobby": _list(
        "rowing, chess, pottery, climbing, birdwatching, sailing, knitting, fencing, juggling, beekeeping, "
        "swimming, photography, archery, cycling, choir singing, woodcarving, tango, running, astronomy, "
        "painting, fishing, karate, badminton, gardening"
    ),
    "day": _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "friend": _list(
        "Nora, Imre, Paula, Kenji, Amira, Tom, Greta, Pavel, Lucia, Ravi, Sofie, Dario, Maeve, Anton, "
        "Leila, Jonas, Carmen, Piotr, Hanna, Oskar, Yusuf, Elena, Felix, Marta, Bjorn, Chiara, Denis, Ines"
    ),
    "ride": _list("bike, tram, bus, scooter, ferry, train, van, metro"),
    "drink": _list(
        "black coffee, green tea, ginger beer, hot chocolate, mint tea, oat latte, apple juice, sparkling "
        "water, red wine, lemonade, espresso, chai, cider, rooibos"
    ),
    "room": _list("balcony, kitchen, attic, cellar, garden, porch, shed, hallway"),
}

#: Several values of each per persona.
TASTES: Mapping[str, tuple[str, ...]] = {
    "dish": _list(
        "mushroom risotto, lentil soup, fish tacos, pumpkin curry, onion tart, bean stew, potato gratin, "
        "chicken pie, ramen, paella, pierogi, lasagne, falafel, goulash, shakshuka, dumplings, beetroot "
        "salad, moussaka, gnocchi, ratatouille, pad thai, spinach pancakes, stuffed peppers, couscous, "
        "omelette, burritos, leek quiche, borscht"
    ),
    "extra": _list(
        "fresh basil, smoked paprika, lemon zest, roast fennel, goat cheese, chilli oil, capers, thyme, "
        "coriander, olives, pickled ginger, brown butter, dill, rosemary, cumin, sour cream, pine nuts, "
        "saffron, parsley, horseradish"
    ),
    "music": _list(
        "fado, bebop, techno, bluegrass, opera, reggae, folk songs, punk, soul, tango songs, string "
        "quartets, synth pop, blues, gospel, ska, disco, metal, ambient"
    ),
    "book": _list(
        "crime novels, sea stories, poetry, space operas, ghost stories, travel diaries, biographies, comic "
        "books, fairy tales, history books, westerns, cookbooks, satire, nature writing, plays, spy "
        "thrillers"
    ),
    "place": _list(
        "the Azores, Lapland, the Tatra hills, Sicily, the Baltic coast, Iceland, the Black Forest, Crete, "
        "the Dolomites, Brittany, the Hebrides, the Camargue, Corsica, the Lofoten islands, Wales, the "
        "Ardennes, Madeira"
    ),
    "opening": _list(
        "Right then, Well now, Honestly, Oh my, Good grief, Between us, Righto, Easy, Listen up, Bless you, "
        "Hand on heart, Ahoy, Look here, No question, By all means, Gosh, Truth be told, Happy to say, Hear "
        "me out, As always, Fair enough, Mind you, Golly, Let me think, Hello dear, Say no more, Crikey, "
        "Okay team, Trust me, Yo"
    ),
    "closing": _list(
        "Cheers for now., Hugs all round., Onwards and upwards!, Mark my words., Peace and love., Over and "
        "out., Keep it simple., That is that., See you soon!, Stay golden., Hip hip hooray!, Life is "
        "short., Yours as ever., Fingers crossed!, Job done., Thank me later., Toodle pip!, No regrets., "
        "Just saying., So be it., Warmest wishes., Smooth sailing!, Rock and roll!, Simple as that., Full "
        "steam ahead!, Sweet dreams., Catch you later., Best of luck!"
    ),
    "saying": _list(
        "slow and steady wins, every little helps, better late than never, the more the merrier, nothing "
        "ventured nothing gained, what will be will be, practice makes perfect, variety is the spice of "
        "life, all good things take time, you only live once, sharing is caring, early birds get the worm, "
        "a change is as good as a rest, home is where the heart is, there is no rush, small steps count, "
        "good company is everything, fortune favours the bold, rules are rules, old habits die hard, waste "
        "not want not, first things first"
    ),
}

#: How many values of each taste one persona has.
HOW_MANY: Mapping[str, int] = dict.fromkeys(TASTES, 2) | {"dish": 3, "extra": 3}

#: What a question may begin with; part of the query, so that wordings recur without being equal.
ADDRESSES: tuple[str, ...] = (
    "",
    "Hey, ",
    "Quick question: ",
    "Tell me, ",
    "Sorry to bother you, ",
    "By the way, ",
    "Me again: ",
    "Just curious, ",
    "Before I forget, ",
    "One more thing, ",
)


@dataclass(frozen=True, slots=True)
class Topic:
    """What people ask a persona about, what it replies, and what it tells of its own accord."""

    questions: tuple[str, ...]
    replies: tuple[str, ...]
    remarks: tuple[str, ...]


TOPICS: Mapping[str, Topic] = {
    "cook": Topic(
        (
            "what should we cook tonight?",
            "any idea for dinner?",
            "what is for supper?",
            "what do we eat?",
            "which recipe would you pick?",
        ),
        (
            "how about {dish} with {extra}?",
            "I would make {dish} with lots of {extra}.",
            "let us have {dish}, and {extra} on top.",
            "it has to be {dish}, {extra} included.",
            "{dish} and a bit of {extra} will do.",
        ),
        (
            "I made {dish} again, with {extra}.",
            "my favourite dish is {dish}.",
            "{dish} is nothing without {extra}.",
            "I bought {extra} at the market in {city}.",
            "there is always some {extra} in my kitchen.",
        ),
    ),
    "pet": Topic(
        (
            "how is your animal?",
            "what is your pet up to?",
            "who is making that noise?",
            "who keeps you company?",
            "is your little one fine?",
        ),
        (
            "my {pet} {petname} sleeps in the {room}.",
            "{petname} the {pet} is hungry again.",
            "{petname} ran through the {room}, silly {pet}.",
            "that is only {petname}, my {pet}.",
            "my {pet} is well, {petname} loves the {room}.",
        ),
        (
            "my {pet} is called {petname}.",
            "{petname} took over the {room} today.",
            "I brushed {petname}, the best {pet} in {city}.",
            "{petname} is a very spoiled {pet}.",
        ),
    ),
    "work": Topic(
        (
            "how was work?",
            "what do you do for a living?",
            "busy at work today?",
            "still in the same job?",
            "who pays your bills?",
        ),
        (
            "being a {job} in {city} keeps me busy.",
            "I am a {job}, and {city} needs one.",
            "a {job} never rests, least of all in {city}.",
            "work as a {job} was fine today.",
            "{city} has too few people like me, a {job}.",
        ),
        (
            "I work as a {job}.",
            "a long day for a {job} in {city}.",
            "ten years a {job} now, and still happy.",
            "{friend} says that I am a born {job}.",
        ),
    ),
    "home": Topic(
        (
            "where do you live these days?",
            "how is your town?",
            "where can I visit you?",
            "did you move?",
            "which place do you call home?",
        ),
        (
            "I live in {city}, near the {ride} stop.",
            "{city} is home, come by {ride}.",
            "come to {city}, we can sit in the {room}.",
            "still in {city}, with a lovely {room}.",
            "my {room} in {city} is always open.",
        ),
        (
            "I moved to {city} long ago.",
            "{city} is lovely this week.",
            "I painted the {room} on {day}.",
            "the {room} is my favourite spot at home.",
        ),
    ),
    "weekend": Topic(
        (
            "any plans this week?",
            "are you free later?",
            "what do you do for fun?",
            "how do you relax?",
            "shall we do something together?",
        ),
        (
            "every {day} it is {hobby} with {friend}.",
            "{hobby} on {day}, what else?",
            "come along on {day}, {friend} and I do {hobby}.",
            "I keep {day} free for {hobby}.",
            "{friend} talked me into more {hobby}.",
        ),
        (
            "{day} is my day for {hobby}.",
            "{hobby} was great with {friend}.",
            "I could do {hobby} all day.",
            "{friend} and I met on {day} as usual.",
        ),
    ),
    "drink": Topic(
        (
            "what can I get you to drink?",
            "thirsty?",
            "what shall I pour you?",
            "what is in your cup?",
            "what do you order at the bar?",
        ),
        (
            "{drink} for me, please.",
            "a large {drink}, and one for {friend}.",
            "nothing beats {drink} in {city}.",
            "I will take {drink}, with {dish} if you have it.",
            "{drink}, as every {day}.",
        ),
        (
            "I had {drink} in the {room}.",
            "{drink} gets me through the day.",
            "out of {drink}, what a disaster.",
            "{friend} brought me {drink}.",
        ),
    ),
    "allergy": Topic(
        (
            "is there anything you cannot eat?",
            "do you want a bite of this?",
            "any allergies?",
            "what should I leave out?",
            "may I order for you?",
        ),
        (
            "no {avoid} for me, but {extra} is fine.",
            "I cannot have {avoid}, so make it {dish}.",
            "leave out the {avoid}, I am allergic.",
            "anything without {avoid}, {dish} for instance.",
            "I get ill from {avoid}, not from {extra}.",
        ),
        (
            "I am allergic to {avoid}.",
            "they put {avoid} in it, so I had to pass.",
            "{friend} forgot that I cannot eat {avoid}.",
            "{dish} without {avoid}, at last.",
        ),
    ),
    "music": Topic(
        (
            "what are you listening to?",
            "which record should I put on?",
            "any music tips?",
            "what shall the band play?",
            "what is that tune?",
        ),
        (
            "put on some {music}, {friend} loves it too.",
            "{music} all the way.",
            "I am all for {music} on a {day}.",
            "either {music} or silence in my {room}.",
            "{music}, played loud in the {room}.",
        ),
        (
            "{music} again until midnight.",
            "I found an old record of {music}.",
            "there was {music} in the streets of {city}.",
            "I hum {music} on the {ride}.",
        ),
    ),
    "book": Topic(
        (
            "what are you reading?",
            "which book should I buy?",
            "can you lend me something to read?",
            "what is on your shelf?",
            "got a good story for me?",
        ),
        (
            "you cannot go wrong with {book}.",
            "I read {book} on the {ride}.",
            "take one of my {book}.",
            "{book}, best with {drink}.",
            "more {book}, {friend} gave me a pile.",
        ),
        (
            "I read {book} all evening.",
            "my shelf is full of {book}.",
            "{book} and {drink}, perfect.",
            "I borrowed more {book} in {city}.",
        ),
    ),
    "travel": Topic(
        (
            "where will you go on holiday?",
            "any travel tips?",
            "where were you last summer?",
            "if you could be anywhere, where?",
            "which trip did you book?",
        ),
        (
            "{place}, and {petname} comes along.",
            "I dream of {place} with {friend}.",
            "off to {place}, with {book} in my bag.",
            "{place} again, it never gets old.",
            "go to {place}, they love {hobby} there.",
        ),
        (
            "I booked a week in {place}.",
            "we were in {place} with {friend}.",
            "a card from {place} came today.",
            "{place} is my idea of heaven.",
        ),
    ),
    "commute": Topic(
        (
            "how will you get here?",
            "why are you late?",
            "do you need a lift?",
            "what is the best way to town?",
            "how do you travel to work?",
        ),
        (
            "I take the {ride}, as ever.",
            "the {ride} in {city} was late again.",
            "no lift needed, I have my {ride}.",
            "by {ride}, with {music} in my ears.",
            "the {ride} on {day} is hopeless.",
        ),
        (
            "I missed the {ride} this morning.",
            "the {ride} is my second home.",
            "met {friend} on the {ride}.",
            "my {ride} and I, every {day}.",
        ),
    ),
    "advice": Topic(
        (
            "what would you advise me?",
            "I feel stuck, what now?",
            "can you cheer me up?",
            "should I wait or act?",
            "what is your secret?",
        ),
        (
            "I always say {saying}.",
            "{saying}, as {friend} knows.",
            "remember, {saying}.",
            "{saying}, any {job} will tell you.",
            "pour some {drink} and think: {saying}.",
        ),
        (
            "{saying}, I told {friend}.",
            "as we say in {city}, {saying}.",
            "{saying}, that is my motto.",
            "{friend} laughed, but {saying}.",
        ),
    ),
}
