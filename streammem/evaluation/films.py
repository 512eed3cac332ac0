"""Films of joined clips and photos, and questions of known truth about them.

    film = plan(clips, seconds=300, seed=0)          # which clip or photo is shown when
    questions = ask_along(film, clips, seed=0)
    questions[0].text, questions[0].gold             # 'When was there a dog?', (4, 17)

A film shows clips again and again, cut to other lengths and mirrored, with photos between them
that are panned, zoomed or held still; in some scenes a sentence is said. What is true of a scene is
what its sentences say, so a thing that is visible and in no sentence counts as absent: the figures
are lower bounds. Questions are asked while the film runs, and half of them have no answer in what
was shown until then. Nothing is decoded here; `film_files.py` makes films, `asking.py` asks them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from streammem.evaluation.timelines import PHRASINGS, TimedQuestion, thing_of
from streammem.memory.retrieval import content_words, stem

SCENE_S = (2.0, 30.0)  # log-uniform between them
OPERATORS = (
    "exists", "when", "first", "last", "how often", "how long", "before", "after", "between",
)  # fmt: skip
ABSENT_SHARE = 1 / 2  # of questions
LATER_SHARE = 1 / 3  # of those about what is absent: it comes after the question
PHOTO_SHARE = 0.4  # of scenes, where there are photos
STILL_SHARE = 0.2  # of photos, which are held still as a fixed camera sees them
MIRRORED_SHARE = 0.25  # of repeats
SAID_SHARE = 0.35  # of scenes, in which a sentence is said
CUE_S = 3.0  # of it
MOST_ASKED = 24  # things of a film, and descriptions of it
MOST_SWAPPED = 12  # questions about swapped descriptions, each time
ASKED_AT = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of a film's scenes
A_TIME = 120  # questions at one of these times, at most
LAST_FRAME_S = 0.02  # before a scene's end, a question comes behind its last frame

SAID = ("What was said about {}?", "What did they say about {}?", "What did someone say of {}?")
_DOING = re.compile(r"(.+?) (\w+ing\b.+)")
_FILMING = re.compile(
    r"\b(?:to|towards?|at|for|from|into|facing) the camera\b"
)  # not one that is seen
VERBS = frozenset(
    "shuffle pour jump place walk inspect swing eat wrestle apply play mix do knead rotate remove "  # noqa: SIM905
    "stretch swim ride breakdance drive turn dance drift stand surf run take snowboard".split()
)
# Everyday things; after the colon, further words of sentences that show one. Each is asked for
# where a sentence of a film names it, and as absent where none does: near ones among them, a cat
# for a dog, an elephant for a camel.
_THINGS = """
a dog:puppy,greyhound,retriever,poodle,terrier,hound | a cat:kitten | a sheep:lamb | a goat |
a horse:pony,stallion,bronco | a cow:calf,bull,cattle | a pig:piglet | a rabbit:bunny | a camel |
an elephant | a giraffe | a zebra | a lion | a tiger | a bear | a monkey:ape | a squirrel |
a bird:duck,swan,goose,pigeon,seagull,gull,parrot,eagle,hawk,owl,penguin | a duck:mallard | a swan |
a chicken:hen,rooster | an owl | a penguin | a parrot | a fish | a shark | a turtle:tortoise |
a snake | a frog | a butterfly | a spider | a dinosaur |
a car:taxi,cab,suv,minivan,automobile,sedan,truck,jeep,van | a taxi:cab | a bus | a van | a tram |
a truck:lorry,pickup | a train:locomotive | an airplane:plane,jet,aircraft | a helicopter |
a boat:canoe,kayak,ship,sailboat,raft,yacht,ferry | a canoe:kayak | a sailboat |
a motorcycle:motorbike,motocross,scooter,dirtbike,moped,motorcyclist | a scooter:moped |
a bicycle:bike,cyclist,bicyclist,bmx,biker,biking | a skateboard:skateboarder,skateboarding,skater |
a surfboard:surfer,surf,surfing,kitesurfer | a snowboard:snowboarder,snowboarding |
skis:ski,skier,skiing | a sled:sledding,sledge,toboggan | a wheelchair | a tractor |
an ambulance | a fire engine:firetruck |
a stroller:pram,carriage | a wagon:cart | a cart:wagon,soapbox | a rocket |
a ball:basketball,football,soccer,baseball,tennis,volleyball,beachball | a basketball |
a baseball bat:bat | a tennis racket:racket,racquet,tennis | a frisbee:disc | a kite:kitesurf |
a golf club:golf,golfer | a hockey stick:hockey | a trampoline | a swing:swinging,swingset |
a slide:waterslide | a balloon | a parachute:paraglider,paragliding,parasail |
a bow and arrow:archer,archery | boxing gloves:boxer,boxing | a guitar:guitarist | a flute |
a piano:keyboard,pianist | a violin:violinist,fiddle | a drum:drummer,drums | a trumpet |
a saxophone | a microphone | a camera:photographer,camcorder | a laptop:computer |
a computer:laptop,desktop | a telephone:phone,cellphone | a television:tv,screen | a radio |
a remote control:remote | a book:novel,textbook,reading | a newspaper | a map | a flag | a clock |
a pencil:pen,crayon | a paintbrush | a watch:wristwatch | a lamp | a candle | a mirror | a bed |
a chair:armchair,stool | a sofa:couch | a table:desk | a bench | a desk | a bookshelf |
a carpet:rug | a curtain:drape | a pillow:cushion | a blanket | a bathtub:tub | a toilet | a sink |
a refrigerator:fridge | an oven:stove | a microwave | a toaster | a kettle:teapot |
a frying pan:pan,pot | a washing machine | a vacuum cleaner:vacuum | a knife | a fork | a spoon |
a plate | a bowl | a cup:mug | a mug | a bottle | a glass of wine:wine | a pizza |
a hamburger:burger | a sandwich | a cake | a doughnut:donut | bread:loaf,toast,baguette | dough |
an ice cream:cone,popsicle | cheese | soup | an apple | a banana | an orange | a watermelon |
a lemon | grapes | a strawberry | a carrot | a tomato | broccoli | corn | sunglasses | a helmet |
a hat:cap,helmet,beanie,sombrero | glasses:eyeglasses,sunglasses,goggles | a tie:necktie |
a suit:tuxedo | a dress:gown | a skirt | a scarf | gloves:mitten | boots | an umbrella | a wig |
a backpack:rucksack | a handbag:purse | a suitcase:luggage | a costume:costumed | a mask:masked |
a necklace | a swimsuit:bikini | a tent:camping | a campfire:bonfire | a ladder | a hammer |
scissors | a rope | a bucket:pail | a shovel | a broom | a hose | a rifle:gun | a sword |
a fishing rod:fishing,fisherman | a tree:palm,pine,forest,wood | a flower:rose,tulip | a cactus |
a waterfall | a mountain:hill,cliff | a beach:shore,seashore | a river:stream,creek |
snow:snowy,snowboard,snowboarder,ski,skier | a lake:pond | a pool:swimming | a fountain |
a bridge | a castle | a church | a lighthouse | a windmill | a tower | a fence | a tunnel |
a staircase:stair,step | a statue:sculpture | a snowman | a rainbow | a volcano | fireworks |
a traffic light | a telescope
"""
THINGS: dict[str, frozenset[str]] = {
    thing.strip(): frozenset(stem(word) for word in more.split(",") if word)
    for thing, _, more in (item.partition(":") for item in " ".join(_THINGS.split()).split("|"))
}

# Of these, people's sentences leave out most that a picture shows: of sixty questions that were
# read five were wrong, all asking when one was there, or for its last time. Each is asked for by
# ``exists`` alone, where a sentence names it, and never as absent.
_UNSAID = """
a tree | a flower | a mountain | a river | a lake | a beach | snow | a fence | a staircase |
a tower | a bridge | a flag | a chair | a table | a desk | a bench | a lamp | a carpet |
a curtain | a pillow | a mirror | a clock | a plate | a cup | a bottle | a watch | a hat | glasses |
sunglasses | a helmet | a tie | a suit | a dress | a skirt | a scarf | gloves | boots |
a necklace | a backpack | a handbag
"""
UNSAID = frozenset(thing.strip() for thing in _UNSAID.split("|"))

Move = Literal["plain", "mirrored", "pan", "still"]


class FilmClip(NamedTuple):
    """A piece of video, or a photo, that sentences describe.

    Attributes:
        name: of its file.
        sentences: for example ``a camel walks in a fenced pen``.
        seconds: its length; 0 of a photo.
    """

    name: str
    sentences: tuple[str, ...]
    seconds: float = 0.0


class FilmScene(NamedTuple):
    """A clip as it is shown in a film: its number, which seconds of it, and how."""

    clip: int
    start: float
    end: float
    move: Move = "plain"


class SpokenSentence(NamedTuple):
    """A sentence that is said in a film.

    Attributes:
        scene: in which it is said; it begins with it.
        text: the sentence.
        topic: a thing that it names.
    """

    scene: int
    text: str
    topic: str


@dataclass(frozen=True, slots=True)
class Film:
    """Scenes in time order, and what is said in them."""

    scenes: tuple[FilmScene, ...]
    cues: tuple[SpokenSentence, ...] = ()

    @property
    def edges(self) -> np.ndarray:
        """[N + 1] seconds of the film at which its scenes begin and end."""
        return np.cumsum([0.0, *(scene.end - scene.start for scene in self.scenes)])


def plan(clips: Sequence[FilmClip], seconds: float, *, seed: int) -> Film:
    """Order clips and photos into a film, never one twice in a row.

    All clips come before one comes again, likewise photos.

    Args:
        clips: at least two clips, or two photos.
        seconds: length; the film ends with the first scene that reaches it.
        seed: equal seeds make equal films.
    """
    rng = np.random.default_rng(seed)
    kinds = [[i for i, clip in enumerate(clips) if bool(clip.seconds) == video] for video in (1, 0)]
    decks: list[list[int]] = [[], []]
    scenes: list[FilmScene] = []
    total = 0.0
    while total < seconds:
        kind = int(bool(kinds[1]) and (not kinds[0] or rng.random() < PHOTO_SHARE))
        if not decks[kind]:
            decks[kind] = [kinds[kind][i] for i in rng.permutation(len(kinds[kind]))]
        number = decks[kind].pop()
        if scenes and number == scenes[-1].clip:
            continue
        length = float(np.exp(rng.uniform(*np.log(SCENE_S))))
        if kind:
            start, move = 0.0, "still" if rng.random() < STILL_SHARE else "pan"
        else:
            length = min(clips[number].seconds, length)
            start = float(rng.uniform(0, clips[number].seconds - length))
            again = any(scene.clip == number for scene in scenes)
            move = "mirrored" if again and rng.random() < MIRRORED_SHARE else "plain"
        scenes.append(FilmScene(number, start, start + length, move))  # type: ignore[arg-type]
        total += length
    return Film(tuple(scenes), _cues(scenes, clips, rng))


def _cues(
    scenes: Sequence[FilmScene], clips: Sequence[FilmClip], rng: np.random.Generator
) -> tuple[SpokenSentence, ...]:
    """Choose what is said: sentences of what is never shown, each about a thing of its own."""
    shown = {scene.clip for scene in scenes}
    seen = [clips[number].sentences for number in shown]
    sayable = []
    for number in rng.permutation(len(clips)):
        text = re.sub(r"\s+([.,;!?])", r"\1", clips[number].sentences[0]).strip()
        topic = next((thing for thing in THINGS if shows([text], thing)), None)
        # What is said must not be visible, too: then it is only heard of.
        if number not in shown and topic and not any(shows(each, topic) for each in seen):
            sayable.append((text, topic))
    cues: list[SpokenSentence] = []
    for scene, length in enumerate(each.end - each.start for each in scenes):
        if not sayable or length < CUE_S or rng.random() >= SAID_SHARE:
            continue
        text, topic = sayable.pop()
        if not any(shows([text], cue.topic) or shows([cue.text], topic) for cue in cues):
            cues.append(SpokenSentence(scene, text, topic))
    return tuple(cues)


def description_of(clip: FilmClip) -> str | None:
    """Return what one can ask for that describes a clip or photo as a whole, if there is anything.

    For example ``a yellow dog walking on dry grass`` of ``a yellow dog walks on dry grass``.
    """
    if not clip.seconds:  # people's captions of photos
        texts = (re.sub(r"\s+([.,;!?])", r"\1", text).strip(" .!") for text in clip.sentences)
        return next(filter(None, (thing_of(text[:1].lower() + text[1:]) for text in texts)), None)
    words = clip.sentences[0].split()
    done = False
    for at, word in enumerate(words[1:], 1):  # its verb becomes a participle, if there is one
        forms = (
            word,
            word.removesuffix("s"),
            word.removesuffix("es"),
            f"{word.removesuffix('ies')}y",
        )
        verb = next((form for form in forms if form in VERBS), None)
        if verb and words[at - 1] not in ("a", "an", "the") and done == (words[at - 1] == "and"):
            base = verb[:-1] if verb[-1] == "e" else verb
            words[at] = {"run": "running", "swim": "swimming"}.get(verb, f"{base}ing")
            done = True
    return " ".join(words)


def shows(sentences: Sequence[str], thing: str) -> bool:
    """Return whether one of the sentences names a thing, or what is one."""
    words, kin = _words(thing), THINGS.get(thing, frozenset())
    said = (_words(sentence, shown=True) for sentence in sentences)
    return any(words <= each or bool(kin & each) for each in said)


@lru_cache(maxsize=8192)  # each sentence of a film is compared with every thing
def _words(text: str, *, shown: bool = False) -> frozenset[str]:
    return content_words(_FILMING.sub("", text) if shown else text)


def ask_along(film: Film, clips: Sequence[FilmClip], *, seed: int) -> tuple[TimedQuestion, ...]:
    """Ask while a film runs, so that evidence is seconds old, or as old as the film.

    Args:
        film: what is asked about.
        clips: that it was made of.
        seed: of what is asked.

    Returns:
        Questions by time, at most ``A_TIME`` at each of ``ASKED_AT``: as ``questions_of`` of
        what was shown by then.
    """
    edges, asked = film.edges, list[TimedQuestion]()
    count = len(film.scenes)
    for number in sorted({max(2, round(share * count)) for share in ASKED_AT}):
        questions = questions_of(film, clips, seed=seed + number, until=number)
        halves = [[q for q in questions if bool(q.gold) == there] for there in (True, False)]
        some = [question for half in halves for question in half[: A_TIME // 2]]
        at = float(edges[number]) - LAST_FRAME_S
        asked += [replace(question, time=at) for question in some]
    return tuple(asked)


def questions_of(
    film: Film, clips: Sequence[FilmClip], *, seed: int, until: int | None = None
) -> tuple[TimedQuestion, ...]:
    """Make questions by operator, half of them about what has not been shown.

    Args:
        film: what is asked about.
        clips: that it was made of.
        seed: of the phrasings, and of what is asked for.
        until: scenes that count as shown; None: all.

    Returns:
        Questions with the scenes that answer them: of ``first`` and ``last`` those of one
        appearance, of ``how often`` the first scene of each appearance, neighbours being one.
        ``before``, ``after`` and ``between`` only of what is seen once, with the scenes that they
        point to and the neighbour. ``said``: the scene in which something is said about it.
        ``swapped``: whether one description was seen, whose halves are of two scenes. ``common``
        are those about one of ``THINGS``. Of what is absent a third comes later, where anything
        does.
    """
    rng = np.random.default_rng(seed)
    shown = [clips[scene.clip] for scene in film.scenes]
    coming = shown[until:] if until is not None else []
    shown = shown[:until]
    cues = [cue for cue in film.cues if cue.scene < len(shown)]
    questions = []

    def ask(
        operator: str, things: Sequence[str], gold: tuple[int, ...], *, later: bool = False
    ) -> None:
        phrasings = SAID if operator == "said" else PHRASINGS.get(operator, PHRASINGS["exists"])
        text = phrasings[int(rng.integers(len(phrasings)))].format(*things)
        if things[0] in THINGS and re.match(r"(?!an? ).*s$", things[0]):
            for one, many in (("Was ", "Were "), ("was ", "were "), ("Has ", "Have ")):
                text = text.replace(one, many)
        common = all(thing in THINGS for thing in things)
        about = " and ".join(things)
        questions.append(TimedQuestion(text, operator, gold, common, later=later, thing=about))

    # 1. What is there: things, and descriptions of whole scenes.
    there = [thing for thing in THINGS if any(shows(clip.sentences, thing) for clip in shown)]
    described = {description_of(clip): clip for clip in dict.fromkeys(shown)}
    wholes = [text for text in described if text]
    chosen = [there[i] for i in rng.permutation(len(there))[:MOST_ASKED]]
    chosen += [wholes[i] for i in rng.permutation(len(wholes))[:MOST_ASKED]]
    once: list[tuple[int, str]] = []
    for thing in chosen:
        scenes = [
            i
            for i, clip in enumerate(shown)
            if shows(clip.sentences, thing) or described.get(thing) == clip
        ]
        runs = _runs(scenes)
        ask("exists", [thing], tuple(scenes))
        if thing in UNSAID:
            continue
        for operator in ("when", "how long"):
            ask(operator, [thing], tuple(scenes))
        ask("first", [thing], runs[0])
        ask("last", [thing], runs[-1])
        ask("how often", [thing], tuple(run[0] for run in runs))
        if len(scenes) == 1 and 0 < scenes[0] < len(shown) - 1:
            ask("before", [thing], (scenes[0] - 1, scenes[0]))
            ask("after", [thing], (scenes[0], scenes[0] + 1))
        if len(scenes) == 1 and " and " not in thing:
            once.append((scenes[0], thing))
    for (left, one), (right, other) in zip(sorted(once), sorted(once)[1:], strict=False):
        if right - left > 1:
            ask("between", [one, other], (left, right))
    for cue in cues:
        ask("said", [cue.topic], (cue.scene,))
    # 2. What is not.
    wanted = round(len(questions) * ABSENT_SHARE / (1 - ABSENT_SHARE))
    texts = [sentence for clip in (*shown, *coming) for sentence in clip.sentences]
    swapped = [text for text in _swapped(wholes, rng) if not shows(texts, text)]
    for text in swapped[: min(MOST_SWAPPED, wanted // 4)]:
        ask("swapped", [text], ())
        wanted -= 1
    for operator, things, later in _absent(film, coming, there, wanted, rng):
        ask(operator, things, (), later=later)
    return tuple(questions[i] for i in rng.permutation(len(questions)))  # the first few: of all


def _absent(
    film: Film,
    coming: Sequence[FilmClip],
    there: Sequence[str],
    wanted: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, list[str], bool]]:
    """Yield (operator, things, whether it comes later) about what has not been shown.

    Of ``between`` one of two is absent. What is said and never shown is asked for by ``said``
    alone.
    """
    heard = [[cue.text] for cue in film.cues]
    absent: dict[bool, list[str]] = {True: [], False: []}
    for number in rng.permutation(len(THINGS)):
        thing = [*THINGS][number]
        if thing in UNSAID:
            continue
        if thing not in there and not any(shows(each, thing) for each in heard):
            absent[any(shows(clip.sentences, thing) for clip in coming)].append(thing)
    operators = [*OPERATORS, *(["said"] if film.cues else [])]
    every = round(1 / LATER_SHARE)
    for number in range(wanted):
        later = bool(absent[True]) and (number % every == 0 or not absent[False])
        operator = operators[(number // every + number) % len(operators)]
        things = [absent[later][number % len(absent[later])]]
        if operator == "between" and there:
            things.insert(number % 2, there[number % len(there)])
        elif operator == "between":
            operator = "exists"
        yield operator, things, later and operator != "said"


def _swapped(wholes: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Join who or what of one description with what another does, and the other way round."""
    parts = [found.groups() for text in wholes if (found := _DOING.fullmatch(text))]
    order = [parts[i] for i in rng.permutation(len(parts))]
    made = []
    for (one, act), (other, other_act) in zip(order[::2], order[1::2], strict=False):
        if content_words(one) != content_words(other):
            made += [f"{one} {other_act}", f"{other} {act}"]
    return made


def _runs(scenes: Sequence[int]) -> list[tuple[int, ...]]:
    """Join neighbouring scenes."""
    runs: list[list[int]] = []
    for scene in scenes:
        if runs and scene == runs[-1][-1] + 1:
            runs[-1].append(scene)
        else:
            runs.append([scene])
    return [tuple(run) for run in runs]


# -- scores --


def scenes_cited(edges: np.ndarray, spans: Sequence[tuple[float, float]]) -> list[int]:
    """Return the scenes that spans show, in the spans' order.

    Boundaries that were found lie beside the true ones: a scene counts where the span covers at
    least half of it, or it at least half of the span.
    """
    cited: list[int] = []
    for start, end in spans:
        shared = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        least = np.minimum(np.diff(edges), end - start) / 2
        cited += np.flatnonzero(shared >= np.maximum(least, 1e-6)).tolist()
    return list(dict.fromkeys(cited))
